package entry

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Virtual IPs that are made up come in pairs: 240.240.X.Y and 2001:2::X:Y (in
// hexadecimal). X is any byte; the first and the last Y are left out, because
// some networks treat such addresses as those of a network itself or of all in it.
const (
	usable = 254
	slots  = 256 * usable
)

func slotAddrs(slot int) [2]netip.Addr {
	x, y := byte(slot/usable), byte(slot%usable)+1
	six := [16]byte{0x20, 0x01, 0x00, 0x02}
	six[13], six[15] = x, y
	return [2]netip.Addr{netip.AddrFrom4([4]byte{240, 240, x, y}), netip.AddrFrom16(six)}
}

// Claim is a host that wants virtual IPs.
type Claim struct {
	Key     mesh.ServiceKey
	Created time.Time
	// Held are the addresses that it was given before, as its status says.
	Held []netip.Addr
}

// Allocate gives every host a virtual IP of each family. The result is a
// function of the claims and the reserved addresses alone, so that all replicas
// say the same, and after a restart too: addresses that were given before stay,
// and a host without takes the place that its name hashes to, or the next free
// one. Older hosts choose first, so that a new one takes nothing away. Hosts
// beyond the number of addresses get none.
func Allocate(claims []Claim, reserved map[netip.Addr]struct{}) map[mesh.ServiceKey][]netip.Addr {
	claims = slices.Clone(claims)
	slices.SortFunc(claims, func(a, b Claim) int { return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key)) })
	taken := make(map[netip.Addr]struct{}, len(reserved)+2*len(claims))
	for a := range reserved {
		taken[a] = struct{}{}
	}
	out := make(map[mesh.ServiceKey][]netip.Addr, len(claims))
	for _, c := range claims {
		for _, a := range c.Held {
			if _, no := taken[a]; !no {
				taken[a] = struct{}{}
				out[c.Key] = append(out[c.Key], a)
			}
		}
	}
	free := slots
	for _, c := range claims {
		if len(out[c.Key]) > 0 || free <= 0 {
			continue
		}
		for i, start := 0, firstSlot(c.Key); i < slots; i++ {
			pair := slotAddrs((start + i) % slots)
			_, four := taken[pair[0]]
			_, six := taken[pair[1]]
			if four || six {
				continue
			}
			taken[pair[0]], taken[pair[1]] = struct{}{}, struct{}{}
			out[c.Key] = pair[:]
			break
		}
		if len(out[c.Key]) == 0 {
			free = 0 // nothing left for anybody
		}
	}
	return out
}

// firstSlot is where a host looks first.
func firstSlot(k mesh.ServiceKey) int {
	h := xxhash.New()
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(k.Namespace)))
	_, _ = h.Write(n[:]) // a hash never fails to write
	_, _ = h.WriteString(k.Namespace)
	_, _ = h.WriteString(string(k.Hostname))
	return int(h.Sum64() % slots)
}

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

// slotOf is the place of an address; false if it is none that is made up.
func slotOf(a netip.Addr) (slot, family int, ok bool) {
	x, y := byte(0), byte(0)
	if a.Is4() {
		b := a.As4()
		x, y = b[2], b[3]
	} else {
		b := a.As16()
		x, y, family = b[13], b[15], 1
	}
	slot = int(x)*usable + int(y) - 1
	return slot, family, y >= 1 && y <= usable && slotAddrs(slot)[family] == a
}

// addresses are those that somebody has.
type addresses struct {
	made  [2][slots]bool // by family
	other map[netip.Addr]struct{}
}

// take takes an address; false if somebody has it.
func (t *addresses) take(a netip.Addr) bool {
	if slot, family, ok := slotOf(a); ok {
		had := t.made[family][slot]
		t.made[family][slot] = true
		return !had
	}
	_, had := t.other[a]
	t.other[a] = struct{}{}
	return !had
}

// pair takes both addresses of the first free place from one on; nil if there is
// none.
func (t *addresses) pair(start int) []netip.Addr {
	for i := range slots {
		slot := (start + i) % slots
		if !t.made[0][slot] && !t.made[1][slot] {
			t.made[0][slot], t.made[1][slot] = true, true
			pair := slotAddrs(slot)
			return pair[:]
		}
	}
	return nil
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
	order := make([]*Claim, len(claims))
	for i := range claims {
		order[i] = &claims[i]
	}
	slices.SortFunc(order, func(a, b *Claim) int { return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key)) })
	taken := &addresses{other: map[netip.Addr]struct{}{}}
	for a := range reserved {
		taken.take(a)
	}
	out := make(map[mesh.ServiceKey][]netip.Addr, len(claims))
	for _, c := range order {
		for _, a := range c.Held {
			if taken.take(a) {
				out[c.Key] = append(out[c.Key], a)
			}
		}
	}
	for _, c := range order {
		if len(c.Held) > 0 && len(out[c.Key]) > 0 {
			continue
		}
		pair := taken.pair(firstSlot(c.Key))
		if pair == nil {
			break // nothing left for anybody
		}
		out[c.Key] = pair
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

package file

import (
	"io/fs"
	"syscall"
)

// beneath is what tells files and their states apart below their names: the
// inode and the time of its last change, which no tool sets back.
func beneath(info fs.FileInfo) [3]int64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return [3]int64{}
	}
	return [3]int64{int64(st.Ino), st.Ctim.Sec, st.Ctim.Nsec} //nolint:gosec // compared, never computed with
}

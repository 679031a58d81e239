package restore

import (
	"fmt"
	"hash/maphash"
	"math"
)

// index numbers the names of files. It takes some 12 bytes for a name and the
// name itself, so that a million files are 40 MB and not a hundred: names in one
// piece of memory, and a hash table of their numbers.
type index struct {
	seed  maphash.Seed
	text  []byte
	ends  []uint32 // name i ends at ends[i], and begins where the one before ends
	table []uint32 // number+1 by hash, linear probing; 0 is free
}

func newIndex() *index { return &index{seed: maphash.MakeSeed(), table: make([]uint32, 64)} }

// len is how many names there are.
func (x *index) len() int { return len(x.ends) }

// name is the name with number i.
func (x *index) name(i int) string { return string(x.bytes(i)) }

func (x *index) bytes(i int) []byte {
	begin := uint32(0)
	if i > 0 {
		begin = x.ends[i-1]
	}
	return x.text[begin:x.ends[i]]
}

// find returns the number of a name; false for one that is not there.
func (x *index) find(name string) (int, bool) {
	slot := x.slot(name)
	if x.table[slot] == 0 {
		return 0, false
	}
	return int(x.table[slot]) - 1, true
}

// slot is where name is in the table, or would be put.
func (x *index) slot(name string) int {
	mask := len(x.table) - 1
	at := int(maphash.String(x.seed, name)) & mask
	for x.table[at] != 0 && string(x.bytes(int(x.table[at])-1)) != name {
		at = (at + 1) & mask
	}
	return at
}

// add gives name the next number; false if it is there already.
func (x *index) add(name string) (bool, error) {
	if len(x.text)+len(name) > math.MaxUint32 {
		return false, fmt.Errorf("the names of the files take more than %d bytes", uint32(math.MaxUint32))
	}
	slot := x.slot(name)
	if x.table[slot] != 0 {
		return false, nil
	}
	x.text = append(x.text, name...)
	x.ends = append(x.ends, uint32(len(x.text)))
	x.table[slot] = uint32(len(x.ends))
	if 3*len(x.ends) > 2*len(x.table) {
		x.grow()
	}
	return true, nil
}

func (x *index) grow() {
	x.table = make([]uint32, 2*len(x.table))
	mask := len(x.table) - 1
	for i := range x.ends {
		at := int(maphash.Bytes(x.seed, x.bytes(i))) & mask
		for x.table[at] != 0 {
			at = (at + 1) & mask
		}
		x.table[at] = uint32(i) + 1
	}
}

// bitset is a set of small numbers. It grows as numbers are added.
type bitset []uint64

func (b *bitset) add(i int) {
	for len(*b) <= i/64 {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bitset) has(i int) bool { return i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0 }

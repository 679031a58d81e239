package pack

import (
	"math"
	"reflect"
	"slices"
	"testing"

	"github.com/walherd/walherd/engine/cluster"
	"pgregory.net/rapid"
)

func sized(sizes ...int64) []cluster.Entry {
	var out []cluster.Entry
	for _, s := range sizes {
		out = append(out, cluster.Entry{Size: s})
	}
	return out
}

func TestRegularWithOnePart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sizes []int64
		want  []Part
	}{
		"nothing":          {nil, nil},
		"one":              {[]int64{5}, []Part{{1, []int32{0}, 5}}},
		"empty files":      {[]int64{0, 0}, []Part{{1, []int32{0, 1}, 0}}},
		"equal stays open": {[]int64{10, 1, 1}, []Part{{1, []int32{0, 1}, 11}, {2, []int32{2}, 1}}},
		"above closes":     {[]int64{11, 11, 3}, []Part{{1, []int32{0}, 11}, {2, []int32{1}, 11}, {3, []int32{2}, 3}}},
		"ends with a full": {[]int64{3, 11}, []Part{{1, []int32{0, 1}, 14}}},
	} {
		if got := Regular(RegularOptions{Threshold: 10})(Items(sized(c.sizes...))); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestRegularWithTwoParts(t *testing.T) {
	t.Parallel()
	got := Regular(RegularOptions{Threshold: 1000, OpenParts: 2})(Items(sized(5000, 1, 1, 1, 5000, 7)))
	want := []Part{{1, []int32{0}, 5000}, {2, []int32{2, 4}, 5001}, {3, []int32{1, 3}, 2}, {4, []int32{5}, 7}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := len(Regular(RegularOptions{OpenParts: 4})(Items(sized(make([]int64, 100)...)))); n != 4 {
		t.Errorf("empty files are spread over %d parts", n)
	}
}

func TestPartNames(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{1: "part_001.tar", 42: "part_042.tar", 1234: "part_1234.tar"} {
		if got := (Part{Number: n}).Name(); got != want {
			t.Errorf("part %d is %s", n, got)
		}
	}
}

func TestRegularProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		entries := sized(rapid.SliceOf(rapid.Int64Range(0, 3000)).Draw(t, "sizes")...)
		opt := RegularOptions{Threshold: rapid.Int64Range(1, 10000).Draw(t, "threshold"), OpenParts: rapid.IntRange(0, 5).Draw(t, "open")}
		parts := Regular(opt)(Items(entries))
		if again := Regular(opt)(Items(entries)); !reflect.DeepEqual(parts, again) {
			t.Fatal("two plans of the same entries differ")
		}
		seen := make([]int, len(entries))
		last := 0
		open := 0
		for _, p := range parts {
			if p.Number <= last || len(p.Entries) == 0 || !slices.IsSorted(p.Entries) {
				t.Fatalf("part %d after %d: %v", p.Number, last, p.Entries)
			}
			last = p.Number
			var sum int64
			for _, i := range p.Entries {
				seen[i]++
				if sum > opt.Threshold {
					t.Fatalf("part %d went on above the threshold", p.Number)
				}
				sum += entries[i].Size
			}
			if sum != p.Size {
				t.Fatalf("part %d: size %d, want %d", p.Number, p.Size, sum)
			}
			if sum <= opt.Threshold {
				open++
			}
		}
		if open > max(opt.OpenParts, 1) {
			t.Fatalf("%d parts are not full", open)
		}
		for i, n := range seen {
			if n != 1 {
				t.Fatalf("entry %d is in %d parts", i, n)
			}
		}
	})
}

// An entry of any size is planned without an overflow.
func TestRegularHugeSizes(t *testing.T) {
	t.Parallel()
	parts := Regular(RegularOptions{OpenParts: 2})(Items(sized(math.MaxInt64/4, math.MaxInt64/4, 1)))
	if len(parts) != 3 {
		t.Errorf("%v", parts)
	}
}

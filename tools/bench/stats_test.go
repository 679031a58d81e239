package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   []float64
		want spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{4, 1}, spread{2.5, 1, 4}},
		{[]float64{9, 1, 5}, spread{5, 1, 9}},
		{[]float64{9, 1, 5, 6}, spread{5.5, 1, 9}},
	} {
		if got := spreadOf(c.in); got != c.want {
			t.Errorf("%v: got %v, want %v", c.in, got, c.want)
		}
	}
}

func TestRatiosArePaired(t *testing.T) {
	t.Parallel()
	s := func(seconds ...int) (out []sample) {
		for _, n := range seconds {
			out = append(out, sample{wall: time.Duration(n) * time.Second})
		}
		return out
	}
	// The second round was slow for both: the ratio is not moved by it.
	got := spreadOf(ratios(s(1, 10, 2), s(2, 20, 4)))
	if want := (spread{0.5, 0.5, 0.5}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	report(&out, "push", []string{"walherd", "tar"}, [][]sample{
		{{wall: time.Second, cpu: 2 * time.Second, rss: 64 << 20, stored: 100 << 20}},
		{{wall: 2 * time.Second, cpu: time.Second, rss: 1 << 20}},
	})
	for _, want := range []string{
		"### push (1 rounds)",
		"| walherd | 1.000 (1.000-1.000) | 2.00 | 64 | 100 | 1 |",
		"| tar | 2.000 (2.000-2.000) | 1.00 | 1 | - | 0.50 (0.50-0.50) |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--only", "("}, {"--runs", "0"}, {"extra"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out, &out); err == nil {
			t.Errorf("%q passes", args)
		}
	}
}

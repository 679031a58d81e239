package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
)

// sample is one run of one contender.
type sample struct {
	wall, cpu time.Duration // cpu: user and system
	rss       int64         // peak resident memory of its largest process, bytes
	stored    int64         // bytes it left behind; 0 where that means nothing
}

// spread is the median of some numbers and what they lie between.
type spread struct{ median, min, max float64 }

// spreadOf needs at least one number.
func spreadOf(v []float64) spread {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return spread{median: (v[(n-1)/2] + v[n/2]) / 2, min: v[0], max: v[n-1]}
}

func (s spread) format(verb string) string {
	return fmt.Sprintf(verb+" ("+verb+"-"+verb+")", s.median, s.min, s.max)
}

// column picks a number from each sample.
func column(samples []sample, pick func(sample) float64) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = pick(s)
	}
	return out
}

func wallSeconds(s sample) float64 { return s.wall.Seconds() }

// ratios are a's wall times over b's, round by round: what slowed the machine
// down in one round slowed both.
func ratios(a, b []sample) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i].wall.Seconds() / b[i].wall.Seconds()
	}
	return out
}

// report writes the table of one measurement. Every row's last column is
// walherd's time over that row's.
func report(w io.Writer, title string, names []string, samples [][]sample) {
	t := table.NewWriter()
	t.AppendHeader(table.Row{"command", "wall s, median (min-max)", "CPU s", "peak MiB", "stored MiB", "walherd / this"})
	for i, name := range names {
		s := samples[i]
		stored := "-"
		if v := spreadOf(column(s, func(s sample) float64 { return float64(s.stored) / (1 << 20) })); v.median > 0 {
			stored = fmt.Sprintf("%.0f", v.median)
			if v.median < 10 {
				stored = fmt.Sprintf("%.2f", v.median)
			}
		}
		ratio := "1"
		if i > 0 {
			ratio = spreadOf(ratios(samples[0], s)).format("%.2f")
		}
		t.AppendRow(table.Row{
			name, spreadOf(column(s, wallSeconds)).format("%.3f"),
			fmt.Sprintf("%.2f", spreadOf(column(s, func(s sample) float64 { return s.cpu.Seconds() })).median),
			fmt.Sprintf("%.0f", spreadOf(column(s, func(s sample) float64 { return float64(s.rss) / (1 << 20) })).max),
			stored, ratio,
		})
	}
	fmt.Fprintf(w, "\n### %s (%d rounds)\n\n%s\n", title, len(samples[0]), t.RenderMarkdown())
}

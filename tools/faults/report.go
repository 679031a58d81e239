package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// errBroken is the end of a run that broke a promise.
var errBroken = errors.New("promises were broken")

// report prints what a run has shown.
func (r *rig) report(v *verdict, took []happened, spent time.Duration) error {
	pushes, err := r.pushes()
	if err != nil {
		return err
	}
	counts := map[string]int{}
	made := 0
	for _, h := range took {
		if strings.HasPrefix(h.note, leftOut) {
			counts["("+h.name+" "+strings.TrimSuffix(leftOut, ": ")+")"]++
			continue
		}
		counts[h.name]++
		made++
	}
	var names []string
	for n := range counts {
		names = append(names, fmt.Sprintf("%s %d", n, counts[n]))
	}
	slices.Sort(names)
	var good []time.Duration
	var failed int
	var longest, gap time.Duration
	var last time.Time
	for _, p := range pushes {
		longest = max(longest, p.took)
		// 128 and more is a signal: ours.
		if p.code != 0 {
			failed++
			if p.code > 125 && p.code != 128+9 {
				v.find("archive_command ends with 0 or 1 to 125", "%s ended with %d", p.name, p.code)
			}
			continue
		}
		if !last.IsZero() {
			gap = max(gap, p.ends.Sub(last))
		}
		last = p.ends
		good = append(good, p.took)
	}
	if limit := pushTimeout + 30*time.Second; longest > limit {
		v.find("archive_command never hangs", "one call took %s, the limit is %s", longest, pushTimeout)
	}
	slices.Sort(good)
	fmt.Printf("\nseed %d: %d faults in %.0f s: %s\n", r.opt.seed, made, spent.Seconds(), strings.Join(names, ", "))
	fmt.Printf("archive_command: %d succeeded, %d failed and were asked again; %s; longest call %.1f s; longest time without one archived %.1f s\n",
		len(good), failed, quantiles(good), longest.Seconds(), gap.Seconds())
	fmt.Printf("backups: %d done, %d listed, %d restored\n", v.backupsDone, v.backupsListed, v.restored)
	fmt.Printf("oracle: %d acknowledged segments compared, %d objects watched, %d dead letters\n", v.segments, v.objects, len(v.letters))
	for _, n := range v.notes {
		fmt.Println("note:", n)
	}
	if len(v.findings) == 0 {
		fmt.Println("no promise was broken")
		return nil
	}
	for _, f := range v.findings {
		fmt.Println("BROKEN:", f)
	}
	return fmt.Errorf("%w: %d findings with seed %d", errBroken, len(v.findings), r.opt.seed)
}

// quantiles of sorted times.
func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "no times"
	}
	at := func(q float64) float64 { return d[max(int(math.Ceil(q*float64(len(d))))-1, 0)].Seconds() }
	return fmt.Sprintf("p50 %.3f s, p99 %.3f s", at(0.5), at(0.99))
}

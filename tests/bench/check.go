package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The bounds of -check, which keep what has been reached from getting lost. None is a
// time of its own, since nobody knows what else the machine does.
const (
	// checkRatio bounds the CPU of penstock by that of the floor. Measured: 3.4 to 3.9
	// on a busy machine; about a third above that.
	checkRatio = 5.2
	// checkMallocs bounds the allocations of an event. Measured: 1.3.
	checkMallocs = 1.8
	// checkRSS bounds the peak memory in MiB. Measured: 255 to 290.
	checkRSS = 380
)

// check measures a part of the set million in short rounds, and fails when one of the
// bounds is passed.
func check(ctx context.Context, binary string, to io.Writer) error {
	set, err := setNamed("million")
	if err != nil {
		return err
	}
	const scale, rounds = 0.15, 4
	p, err := takeTurns(ctx, set, scale, rounds, []Contender{{Name: floorName}, {Name: penstockName, Binary: binary}, {Name: floorName}}, Options{}, to)
	if err != nil {
		return err
	}
	p.print(to)
	var errs []error
	bound := func(what string, seen, limit float64) {
		fmt.Fprintf(to, "%s: %.2f, bound %.2f\n", what, seen, limit)
		if seen > limit {
			errs = append(errs, fmt.Errorf("%s is %.2f, above the bound of %.2f in tests/bench/check.go: "+
				"profile what has changed (go run ./tests/bench -profile FILE), or say there why it has to cost more", what, seen, limit))
		}
	}
	bound("CPU of penstock by that of the floor", p.ratio(penstockName, floorName), checkRatio)
	bound("allocations an event", median(p.of(penstockName, Result.MallocsPerEvent)), checkMallocs)
	bound("peak MiB", median(p.of(penstockName, func(r Result) float64 { return r.PeakRSSMiB })), checkRSS)
	return errors.Join(errs...)
}

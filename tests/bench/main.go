// Command bench measures the whole pipeline, as one process with every stage and
// the NATS server inside, durable at each hop.
//
// The S3 and SQS endpoint and the HTTP receiver run in this process; what is
// reported is the penstock process alone, as the operating system accounts for it.
// On a shared machine only ratios of runs side by side mean anything, which is what
// the floor is for: a plain loop that does the same work and promises nothing.
//
//	go run ./tests/bench -pair                    penstock and the floor take turns on the set million
//	go run ./tests/bench -pair -set tiny -rounds 5
//	go run ./tests/bench -pair -binary ./old -binary2 ./new
//	                                              two builds and the floor
//	go run ./tests/bench -set huge                one run of penstock
//	go run ./tests/bench -set huge -floor         one run of the floor
//	go run ./tests/bench -set destinations        200 k stored events to ten destinations, one of them dead
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func main() {
	if os.Getenv(floorRole) != "" {
		exit(runFloor(context.Background()))
	}
	exit(run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run() error {
	name := flag.String("set", "million", "what to do; see -sets")
	list := flag.Bool("sets", false, "list the sets")
	pair := flag.Bool("pair", false, "have the floor and penstock take turns")
	rounds := flag.Int("rounds", 3, "rounds of -pair and of the set destinations")
	binary := flag.String("binary", "", "penstock to measure; empty builds it from this tree")
	binary2 := flag.String("binary2", "", "with -pair: another build of penstock to measure beside it")
	onlyFloor := flag.Bool("floor", false, "measure the floor instead: a plain loop with no promise at all")
	scale := flag.Float64("scale", 1, "fraction of the set, for a short run")
	limit := flag.String("memlimit", "", "GOMEMLIMIT of penstock in the set destinations; empty: what it sets itself")
	asJSON := flag.Bool("json", false, "print JSON")
	profile := flag.String("profile", "", "write a CPU profile of penstock to this file")
	lanes := flag.Int("lanes", 0, "dedupe lanes; 0: the default")
	store := flag.String("store", "", "folder for the streams; empty: a temporary one")
	timeout := flag.Duration("timeout", 15*time.Minute, "give up after this time")
	flag.Parse()
	if *list {
		for _, s := range sets {
			fmt.Printf("%-12s %s\n", s.Name, s.About)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if *binary == "" && !*onlyFloor {
		dir, err := os.MkdirTemp("", "penstock-bench-*")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		*binary = filepath.Join(dir, "penstock")
		if err := build(ctx, *binary); err != nil {
			return err
		}
	}
	if *name == "destinations" {
		return destinations(ctx, *binary, *limit, *scale, *rounds)
	}
	set, err := setNamed(*name)
	if err != nil {
		return err
	}
	o := Options{Store: *store, Profile: *profile}
	if *lanes > 0 {
		o.Extra = fmt.Sprintf("dedupe: {lanes: %d}", *lanes)
	}
	var contenders []Contender
	if *pair || *onlyFloor {
		contenders = append(contenders, Contender{Name: floorName})
	}
	if *pair || !*onlyFloor {
		contenders = append(contenders, Contender{Name: "penstock", Binary: *binary})
	}
	if *pair && *binary2 != "" {
		contenders = append(contenders, Contender{Name: "penstock2", Binary: *binary2})
	}
	if !*pair {
		*rounds = 1
	}
	p, err := takeTurns(ctx, set, *scale, *rounds, contenders, o)
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(p)
	}
	p.print(os.Stdout)
	return nil
}

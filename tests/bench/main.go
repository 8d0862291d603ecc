// Command bench measures the whole pipeline, as one process with every stage and
// the NATS server inside, durable at each hop.
//
// The S3 and SQS endpoint and the HTTP receiver run in this process; what is
// reported is the penstock process alone, as the operating system accounts for it.
// On a shared machine only ratios of runs side by side mean anything, which is what
// the floor is for: a plain loop that does the same work and promises nothing.
//
//	go run ./tests/bench -report out.json        all there is, against the targets; three quarters of an hour
//	go run ./tests/bench -report out.json -only vpc,idle
//	                                             some parts anew; -parts lists them
//	go run ./tests/bench -plot out.json          plots and tables of docs/performance.md
//	go run ./tests/bench -check                  the check of CI
//	go run ./tests/bench -pair                   penstock and the floor take turns on the set million
//	go run ./tests/bench -pair -set tiny -rounds 5
//	go run ./tests/bench -pair -binary ./old -binary2 ./new
//	                                             two builds and the floor
//	go run ./tests/bench -set huge               one run of penstock
//	go run ./tests/bench -set huge -floor        one run of the floor
//	go run ./tests/bench -set linear -line types one line of the part linear
//	go run ./tests/bench -sources 200 -heapprofile heap.pprof
//	                                             where memory is with so many sources; see -types, -destinations
//	go run ./tests/bench -set destinations       200 k stored events to ten destinations, one of them dead
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// setDestinations is the set that [destinations] has to itself.
const setDestinations = "destinations"

func run() error {
	name := flag.String("set", "million", "what to do: a part, see -parts, or destinations")
	list := flag.Bool("parts", false, "list the sets and the other parts")
	report := flag.String("report", "", "measure all parts into this file")
	line := flag.String("line", "", "of the part linear, this line alone: events, sources, destinations or types")
	only := flag.String("only", "", "with -report: these parts alone, with commas between them; the file keeps the others")
	plot := flag.String("plot", "", "draw the plots and write the tables of the documentation from this report")
	doc := flag.String("doc", "docs/performance.md", "with -plot: the page with the tables; the plots go to the folder images beside it")
	checking := flag.Bool("check", false, "fail when penstock has become much dearer than the floor")
	pair := flag.Bool("pair", false, "have the floor and penstock take turns")
	rounds := flag.Int("rounds", 3, "rounds of -pair, -report and the set destinations")
	binary := flag.String("binary", "", "penstock to measure; empty builds it from this tree")
	binary2 := flag.String("binary2", "", "with -pair: another build of penstock to measure beside it")
	onlyFloor := flag.Bool("floor", false, "measure the floor instead: a plain loop with no promise at all")
	scale := flag.Float64("scale", 1, "fraction of the work, for a short run")
	limit := flag.String("memlimit", "", "GOMEMLIMIT of penstock in the set destinations; empty: what it sets itself")
	asJSON := flag.Bool("json", false, "print JSON")
	profile := flag.String("profile", "", "write a CPU profile of penstock to this file")
	heap := flag.String("heapprofile", "", "write a heap profile of penstock to this file, when all is delivered")
	extra := flag.String("config", "", "YAML to add to penstock's configuration, e.g. 'dedupe: {lanes: 4}'")
	store := flag.String("store", "", "folder for the streams; empty: a temporary one")
	sources := flag.Int("sources", 1, "queues that a set's work is divided among; more than one without the floor")
	receivers := flag.Int("destinations", 1, "receivers that each get all of it; more than one without the floor")
	warm := flag.Int("warm", 0, "pieces that come first and count for nothing, of a set without duplicates")
	types := flag.Int("types", 0, "JSON lines of so many event types, instead of a set")
	timeout := flag.Duration("timeout", 3*time.Hour, "give up after this time")
	flag.Parse()
	switch {
	case *list:
		for _, s := range sets {
			fmt.Printf("%-12s %s\n", s.Name, s.About)
		}
		fmt.Println(strings.Join(parts()[len(sets):], ", "))
		return nil
	case *plot != "":
		return publish(*plot, *doc)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	here := *binary == ""
	if here && !*onlyFloor {
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
	switch {
	case *checking:
		return check(ctx, *binary, os.Stdout)
	case *name == setDestinations:
		return destinations(ctx, *binary, *limit, *scale, *rounds)
	case *report != "":
		wanted, err := choose(*only)
		if err != nil {
			return err
		}
		r, err := load(*report)
		if err != nil {
			return err
		}
		r.Commit, r.line = commit(ctx, *binary, here), *line
		err = r.fill(ctx, wanted, *binary, *report, *scale, *rounds, os.Stderr)
		r.print(os.Stdout)
		return err
	}
	set, err := setNamed(*name)
	if *types > 0 {
		var w *Work
		if set, w, err = typed(share(400, *scale), 5000, *types); err != nil {
			return err
		}
		set.Make = func(float64) (*Work, error) { return w, nil }
	}
	if err != nil { // a part that is no set
		wanted, err := choose(*name)
		if err != nil {
			return err
		}
		file := filepath.Join(os.TempDir(), "penstock-bench-"+*name+".json")
		defer func() { _ = os.Remove(file) }()
		r := &Report{Origin: Origin{Commit: commit(ctx, *binary, here)}, line: *line}
		err = r.fill(ctx, wanted, *binary, file, *scale, *rounds, os.Stderr)
		r.print(os.Stdout)
		return err
	}
	o := Options{Store: *store, Profile: *profile, Heap: *heap, Extra: *extra, Sources: *sources, Destinations: *receivers, Warm: *warm}
	var contenders []Contender
	if *pair || *onlyFloor {
		contenders = floors(set)
	}
	if *pair || !*onlyFloor {
		contenders = append(contenders, Contender{Name: penstockName, Binary: *binary})
	}
	if *pair && *binary2 != "" {
		contenders = append(contenders, Contender{Name: penstockName + "2", Binary: *binary2})
	}
	if !*pair {
		*rounds = 1
	}
	p, err := takeTurns(ctx, set, *scale, *rounds, contenders, o, os.Stderr)
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

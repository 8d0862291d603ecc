// Command fuzz lets every fuzz target of penstock search for a while: .ci/fuzz.
//
// Inputs that find new code stay in Go's cache, from which the next run goes on. With
// -keep the smallest of them that together reach all of that code go to testdata/fuzz,
// where every test run tries them. An input on which a target fails is there anyway.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// target is one fuzz function.
type target struct {
	dir, name string
	// what came of it.
	executions, fresh, known int
	took                     time.Duration
	result                   string
}

func (t *target) String() string { return t.dir + " " + t.name }

type runner struct {
	time, minimize time.Duration
	bin, cache     string
	done           string // file with the targets of this round that are over
	most           int64
	mu             sync.Mutex
	building       map[string]*sync.Once
	broken         map[string]error
}

func main() {
	each := flag.Duration("time", 20*time.Second, "how long each target searches")
	parallel := flag.Int("parallel", max(1, runtime.NumCPU()/2), "how many targets search at the same time, each on one core")
	only := flag.String("run", "", "only targets whose folder and name match this expression")
	keep := flag.Bool("keep", false, "search nothing; keep the smallest inputs of the cache that reach all of its code in testdata/fuzz")
	again := flag.Bool("again", false, "begin a new round instead of going on with one that was ended")
	most := flag.Int64("keep-bytes", 24<<10, "with -keep: how many bytes of inputs to keep for a target")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, *each, *parallel, *only, *keep, *again, *most)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

func run(ctx context.Context, each time.Duration, parallel int, only string, keep, again bool, most int64) (int, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return 1, err
	}
	targets, err := find(".")
	if err != nil {
		return 1, err
	}
	targets = slices.DeleteFunc(targets, func(t *target) bool { return !match.MatchString(t.String()) })
	if len(targets) == 0 {
		return 1, errors.New("no target fits")
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOCACHE").Output()
	if err != nil {
		return 1, err
	}
	cache := filepath.Join(strings.TrimSpace(string(out)), "fuzz")
	bin, err := os.MkdirTemp("", "penstock-fuzz-*")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(bin) }()
	r := &runner{time: each, minimize: 5 * time.Second, bin: bin, cache: cache, most: most, done: filepath.Join(cache, "penstock-round"), building: map[string]*sync.Once{}, broken: map[string]error{}}
	if again {
		_ = os.Remove(r.done)
	}
	over := map[string]bool{}
	if data, err := os.ReadFile(r.done); err == nil && !keep {
		for line := range strings.Lines(string(data)) {
			over[strings.TrimSpace(line)] = true
		}
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, max(1, parallel))
	for _, t := range targets {
		if over[t.String()] {
			t.result = "searched before, in this round"
			continue
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			t.result = "not searched"
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			if keep {
				r.keep(ctx, t)
				return
			}
			r.search(ctx, t)
		})
	}
	wg.Wait()
	return r.report(targets, keep), nil
}

var function = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

// find lists the targets below a folder.
func find(root string) ([]*target, error) {
	var all []*target
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		data, err := os.ReadFile(path) //nolint:gosec // our own tree
		if err != nil {
			return err
		}
		for _, m := range function.FindAllSubmatch(data, -1) {
			all = append(all, &target{dir: filepath.Dir(path), name: string(m[1])})
		}
		return nil
	})
	slices.SortFunc(all, func(a, b *target) int { return cmp.Compare(a.String(), b.String()) })
	return all, err
}

// build makes the test program of a package, once.
func (r *runner) build(ctx context.Context, dir, flags string) (string, error) {
	path := filepath.Join(r.bin, strings.ReplaceAll(dir, string(filepath.Separator), "_")+".test")
	r.mu.Lock()
	once := r.building[dir]
	if once == nil {
		once = &sync.Once{}
		r.building[dir] = once
	}
	r.mu.Unlock()
	once.Do(func() {
		out, err := exec.CommandContext(ctx, "go", "test", "-c", flags, "-o", path, "./"+dir).CombinedOutput() //nolint:gosec // our own tree
		if err != nil {
			err = fmt.Errorf("build %s: %w\n%s", dir, err, out)
		}
		r.mu.Lock()
		r.broken[dir] = err
		r.mu.Unlock()
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return path, r.broken[dir]
}

var progress = regexp.MustCompile(`execs: (\d+).*new interesting: (\d+) \(total: (\d+)\)`)

// search has a target search for a while.
func (r *runner) search(ctx context.Context, t *target) {
	began := time.Now()
	defer func() { t.took = time.Since(began) }()
	path, err := r.build(ctx, t.dir, "-fuzz=.")
	if err != nil {
		t.result = err.Error()
		return
	}
	began = time.Now()
	cmd := exec.CommandContext(ctx, path, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzztime="+r.time.String(), "-test.parallel=1", //nolint:gosec // our own program
		"-test.fuzzminimizetime="+r.minimize.String(), "-test.fuzzcachedir="+filepath.Join(r.cache, "github.com/penstock/penstock", t.dir))
	cmd.Dir = t.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Run()
	for line := range strings.Lines(said.String()) {
		if m := progress.FindStringSubmatch(line); m != nil {
			t.executions, _ = strconv.Atoi(m[1])
			t.fresh, _ = strconv.Atoi(m[2])
			t.known, _ = strconv.Atoi(m[3])
		}
	}
	switch {
	case ctx.Err() != nil:
		t.result = "ended before its time"
		return
	case err != nil:
		t.result = "FAILED"
		fmt.Printf("%s failed:\n%s\n", t, said.String())
	default:
		t.result = "ok"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, err := os.OpenFile(r.done, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		_, _ = fmt.Fprintln(f, t)
		_ = f.Close()
	}
}

// mostInput bounds an input that is kept, in bytes.
const mostInput = 4 << 10

// keep chooses inputs of the cache, the smallest first, as long as each reaches code that
// those before it did not, and puts them where tests look.
func (r *runner) keep(ctx context.Context, t *target) {
	path, err := r.build(ctx, t.dir, "-cover")
	if err != nil {
		t.result = err.Error()
		return
	}
	from := filepath.Join(r.cache, "github.com/penstock/penstock", t.dir, t.name)
	entries, _ := os.ReadDir(from) // nothing was found yet: nothing to keep
	type input struct {
		name string
		size int64
	}
	var inputs []input
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Size() <= mostInput {
			inputs = append(inputs, input{e.Name(), info.Size()})
		}
	}
	slices.SortFunc(inputs, func(a, b input) int { return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.name, b.name)) })
	inputs = inputs[:min(len(inputs), 250)]
	to := filepath.Join(t.dir, "testdata", "fuzz", t.name)
	reached := map[string]bool{}
	r.blocks(ctx, path, t, "^"+t.name+"$", reached) // by the seeds that the test has
	kept := int64(0)
	for _, in := range inputs {
		if ctx.Err() != nil || kept+in.size > r.most {
			break
		}
		place := filepath.Join(to, in.name)
		if _, err := os.Stat(place); err == nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, in.name))
		if err == nil {
			if err = os.MkdirAll(to, 0o750); err == nil {
				err = os.WriteFile(place, data, 0o644) //nolint:gosec // it is committed
			}
		}
		if err != nil {
			t.result = err.Error()
			return
		}
		if r.blocks(ctx, path, t, "^"+t.name+"$/^"+in.name+"$", reached) == 0 {
			_ = os.Remove(place)
			continue
		}
		t.known++
		kept += in.size
	}
	_ = os.Remove(to) // when it is empty
	t.executions, t.fresh, t.result = len(inputs), int(kept), "kept"
}

// blocks runs tests and adds the blocks of code that they reach to reached. It returns
// how many are new.
func (r *runner) blocks(ctx context.Context, path string, t *target, tests string, reached map[string]bool) (fresh int) {
	profile := filepath.Join(r.bin, strings.ReplaceAll(t.String(), string(filepath.Separator), "_")+".cover")
	cmd := exec.CommandContext(ctx, path, "-test.run="+tests, "-test.coverprofile="+profile) //nolint:gosec // our own program
	cmd.Dir = t.dir
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if cmd.Run() != nil {
		return 1 // it fails: that is to be kept
	}
	f, err := os.Open(profile)
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // it was read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if block, hit := strings.CutSuffix(lines.Text(), " 1"); hit && !reached[block] {
			reached[block] = true
			fresh++
		}
	}
	return fresh
}

// report prints what came of each target.
func (r *runner) report(targets []*target, keep bool) int {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	head := "PACKAGE\tTARGET\tEXECUTIONS\tNEW INPUTS\tKNOWN\tTIME\tRESULT"
	if keep {
		head = "PACKAGE\tTARGET\tINPUTS\tBYTES KEPT\tKEPT\tTIME\tRESULT"
	}
	fmt.Fprintln(w, head)
	code, waiting := 0, false
	for _, t := range targets {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\t%s\n", t.dir, t.name, t.executions, t.fresh, t.known, t.took.Round(time.Second), strings.SplitN(t.result, "\n", 2)[0])
		switch {
		case strings.HasPrefix(t.result, "not ") || strings.HasPrefix(t.result, "ended"):
			waiting = true
		case t.result != "ok" && t.result != "kept" && !strings.HasPrefix(t.result, "searched"):
			code = 1
		}
	}
	_ = w.Flush()
	if waiting {
		fmt.Println("some targets were not searched; the next run goes on with them")
	} else if !keep {
		_ = os.Remove(r.done) // the round is over
	}
	return code
}

package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/topology"
)

// A configuration that is read twice is the same, whatever the kinds in it: else every
// reload would open all destinations anew. A secret that changes is a change.
func TestTheSameConfigurationChangesNothing(t *testing.T) {
	kinds := 0
	for _, g := range groups {
		if g.name == "formats" {
			continue
		}
		for _, name := range g.names() {
			k, err := g.kind(name)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "penstock.yaml")
			if err := os.WriteFile(path, []byte(k.Example), 0o600); err != nil {
				t.Fatal(err)
			}
			load := func(secret string) File {
				for _, part := range strings.Split(k.Example, "${")[1:] {
					variable, _, _ := strings.Cut(part, "}")
					t.Setenv(variable, secret)
				}
				file, err := loadFile(path)
				if err != nil { // of what a secret has to look like; TestKinds sees to the rest
					t.Logf("%s %s: %v", g.one, name, err)
				}
				return file
			}
			kinds++
			p := newPipeline(load("example"), topology.Stages, slog.New(slog.DiscardHandler))
			m := deliver.NewManager(deliver.ManagerDeps{})
			m.Configure(p.file.Destinations)
			next := load("example")
			if changes := m.Configure(next.Destinations); changes.Any() {
				t.Errorf("%s %s: read twice, %+v", g.one, name, changes)
			}
			if restart := p.needRestart(next); len(restart) > 0 {
				t.Errorf("%s %s: read twice, %v need a restart", g.one, name, restart)
			}
			if g.name == "destinations" && strings.Contains(k.Example, "${") {
				if changes := m.Configure(load("sample").Destinations); len(changes.Changed) != 1 {
					t.Errorf("%s %s: another secret changes %+v", g.one, name, changes)
				}
			}
		}
	}
	if kinds < 5 {
		t.Fatalf("only %d kinds were tried", kinds)
	}
}

// What a reload cannot take over is named, as far as it concerns the stages that run.
func TestSectionsThatNeedARestart(t *testing.T) {
	change := map[string]func(*File){
		"bus":       func(f *File) { f.Bus.AckWait++ },
		"sources":   func(f *File) { f.Sources = []Source{{Name: "new"}} },
		"fetch":     func(f *File) { f.Fetch.MissingKeyWait++ },
		"parse":     func(f *File) { f.Parse.MaxEventTypes++ },
		"dedupe":    func(f *File) { f.Dedupe.Window++ },
		"ledger":    func(f *File) { f.Ledger.Keep++ },
		"console":   func(f *File) { f.Console.Session.Idle++ },
		"telemetry": func(f *File) { f.Telemetry.LogFormat = "json" },
	}
	all := []string{"bus", "sources", "fetch", "parse", "dedupe", "ledger", "console", "telemetry"}
	for _, tt := range []struct {
		stages []topology.Stage
		want   []string
	}{
		{topology.Stages, all},
		{[]topology.Stage{topology.Ingest}, []string{"bus", "sources", "telemetry"}},
		{[]topology.Stage{topology.Parse}, []string{"bus", "sources", "parse", "telemetry"}},
		{[]topology.Stage{topology.Dedupe}, []string{"bus", "dedupe", "telemetry"}},
		{[]topology.Stage{topology.Route}, []string{"bus", "telemetry"}},
		{[]topology.Stage{topology.Deliver}, []string{"bus", "sources", "telemetry"}},
	} {
		p := newPipeline(defaults(), tt.stages, slog.New(slog.DiscardHandler))
		next := defaults()
		next.Telemetry.Output, next.Telemetry.Identity.Stage = &bytes.Buffer{}, "x" // what the program sets itself
		for _, section := range all {
			change[section](&next)
		}
		if got := p.needRestart(next); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v need a restart, want %v", tt.stages, got, tt.want)
		}
	}
}

// A file that is being written is left alone until it stays as it is, and so is one that
// is not there.
func TestWatchedWaitsForTheEnd(t *testing.T) {
	at := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	old, half, whole, none := fileChange{at, 100}, fileChange{at.Add(time.Second), 50}, fileChange{at.Add(time.Second), 120}, fileChange{}
	w := watched{read: old}
	for i, look := range []struct {
		now  fileChange
		want bool
	}{{old, false}, {half, false}, {whole, false}, {none, false}, {none, false}, {half, false}, {old, false}, {old, false}, {whole, false}, {whole, true}} {
		if got := w.look(look.now); got != look.want {
			t.Errorf("look %d: %v, want %v", i, got, look.want)
		}
	}
}

// What changed between the reading of the file at the start and the first look is seen.
func TestWatchBeginsWithWhatWasRead(t *testing.T) {
	defer func(every time.Duration) { watchEvery = every }(watchEvery)
	watchEvery = time.Millisecond
	path := filepath.Join(t.TempDir(), "penstock.yaml")
	if err := os.WriteFile(path, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := lastChange(path)
	if err := os.WriteFile(path, []byte("ab"), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded := make(chan struct{})
	r := reloading{watch: path, read: before, load: func() (File, error) {
		loaded <- struct{}{}
		return defaults(), nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.run(ctx, newPipeline(defaults(), topology.Stages, slog.New(slog.DiscardHandler)), nil)
	}()
	select {
	case <-loaded:
	case <-time.After(time.Minute):
		t.Error("the change was not seen")
	}
	cancel()
	<-ended
}

// A file that is written again is seen, and one that is missing for a moment is no
// change but to what comes then.
func TestLastChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "penstock.yaml")
	write := func(text string, at time.Time) fileChange {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		return lastChange(path)
	}
	now := time.Now()
	a := write("a", now)
	if a != lastChange(path) {
		t.Error("nothing changed")
	}
	if a == write("ab", now) || a == write("b", now.Add(time.Second)) {
		t.Error("a change was not seen")
	}
	link := filepath.Join(t.TempDir(), "link.yaml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if lastChange(link) != lastChange(path) {
		t.Error("a link is not followed")
	}
}

// The console shows the configuration that counts: after a reload the destinations and
// rules of that, and of what needs a restart still what it began with.
func TestConsoleShowsWhatAReloadChanged(t *testing.T) {
	p := newPipeline(defaults(), topology.Stages, slog.New(slog.DiscardHandler))
	p.overseer = newOverseer(p.file, p.log)
	next := defaults()
	next.Destinations = []deliver.Destination{{Name: "fresh-siem", Type: "discard"}}
	next.Bus.AckWait *= 2
	p.reload(func() (File, error) { return next, nil })
	if got := p.overseer.configured().Destinations["fresh-siem"]; got != "discard" {
		t.Errorf("the destination that was added is of the kind %q", got)
	}
	if file := p.overseer.shown.Load(); len(file.Destinations) != 1 || file.Bus.AckWait != defaults().Bus.AckWait {
		t.Errorf("shown: %d destinations, ack wait %s", len(file.Destinations), file.Bus.AckWait)
	}
}

package sources

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/topology"
)

// errEnough breaks a range off, as the death of a process does.
var errEnough = errors.New("enough")

// ranged reads a stretch of time in several lives, each of some pieces, and returns the
// number of pieces, and what is not to be had.
func ranged(t *testing.T, open func(process string) Source, from, to time.Time) (pieces int, gone string) {
	t.Helper()
	after, done, waits := "", 0, 0
	for life := 1; ; life++ {
		r := Range{
			From: from, To: to, Job: "job", After: after,
			Plan: func(n int, missing string) error { pieces, gone = n, missing; return nil },
			Wait: func(_ context.Context, most float64) error {
				if waits++; most <= 0 {
					t.Errorf("at most %v calls a second", most)
				}
				return nil
			},
			Done: func(piece string, n int, _, _ uint64) error {
				if piece <= after || n != done+1 {
					t.Errorf("piece %q, number %d, after %q, number %d", piece, n, after, done)
				}
				if life%2 == 0 && n%3 == 0 {
					return errEnough // it is stored, and nobody has noted it
				}
				after, done = piece, n
				if life%2 == 1 && n%4 == 0 {
					return errEnough
				}
				return nil
			},
		}
		err := open(fmt.Sprint("life ", life)).(Ranged).Range(t.Context(), r)
		if err == nil {
			break
		}
		if !errors.Is(err, errEnough) {
			t.Fatal(err)
		}
	}
	if done != pieces || waits == 0 {
		t.Errorf("%d of %d pieces were done, in %d calls", done, pieces, waits)
	}
	return pieces, gone
}

// announcedAgain checks that all pulls of a server are those of the job, and balanced.
func announcedAgain(t *testing.T, s *pollServer) *stored {
	t.Helper()
	got := s.stored(t)
	bus := s.connect(t, "facts")
	if err := bus.Read(t.Context(), topology.Span{Subject: "penstock.ledger.ingest"}, func(m topology.Stored) error {
		facts, err := messages.DecodeFacts(m.Data)
		for _, f := range facts.GetFacts() {
			if a := f.GetAnnounced(); a != nil && a.GetJob() != "job" {
				t.Errorf("a fact without its job: %v", a)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, p := range got.report.Pulls {
		if p.Frames == 0 {
			t.Errorf("pull without frames: %+v", p)
		}
	}
	return got
}

// covers: pain 9: a time range of CloudTrail's event history, beside the live source and
// with pulls of its own.
func TestRangeCloudTrail(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.happen("eu-west-1", 120)
	h.happen("us-east-1", 90)
	h.CloudTrail().Add("eu-west-1", cloud.TrailEvent{ID: "too old", Name: "x", Source: "s3.amazonaws.com", Time: h.now.Add(-5 * time.Hour)})
	cfg := h.config("eu-west-1", "us-east-1")
	cfg.SecondLook = 3 * time.Hour
	from, to := h.now.Add(-4*time.Hour), h.now.Add(-90*time.Minute)
	pieces, gone := ranged(t, func(process string) Source { return h.open(t, process, cfg) }, from, to)
	if pieces < 20 || pieces > 24 || gone != "" {
		t.Errorf("%d pieces, %q gone", pieces, gone)
	}
	got := idsOf(t, announcedAgain(t, h.server).records)
	var want []string
	for i := range 120 {
		if at := h.now.Add(-time.Hour - time.Duration(120-i)*time.Minute/2); at.Before(to) {
			want = append(want, fmt.Sprintf("eu-west-1-%04d", i))
		}
	}
	for i := range 90 {
		if at := h.now.Add(-time.Hour - time.Duration(90-i)*time.Minute/2); at.Before(to) {
			want = append(want, fmt.Sprintf("us-east-1-%04d", i))
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) || len(want) < 60 {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	if _, gone := ranged(t, func(process string) Source { return h.open(t, process, h.config("eu-west-1")) }, h.now.Add(-90*24*time.Hour-time.Hour), h.now.Add(-89*24*time.Hour)); !strings.Contains(gone, "90 days") {
		t.Errorf("gone %q", gone)
	}
}

// covers: pain 9: what expires while a slot is walked through makes shorter walks.
func TestRangeCloudTrailTokensExpire(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	want := h.happen("eu-west-1", 100)
	h.CloudTrail().PageSize(10)
	calls := 0
	h.SetFault(func(op, _, _ string) cloud.Fault {
		if op == "LookupEvents" {
			if calls++; calls%5 == 2 && calls < 15 {
				h.CloudTrail().ExpireTokens()
			}
		}
		return cloud.Fault{}
	})
	ranged(t, func(process string) Source { return h.open(t, process, h.config("eu-west-1")) }, h.now.Add(-3*time.Hour), h.now)
	if got := h.ids(t); !slices.Equal(got, want) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
}

// covers: pain 9: a time range of log groups, of metrics and of findings.
func TestRangeOthers(t *testing.T) {
	t.Parallel()
	t.Run("logs", func(t *testing.T) {
		w := newWatched(t)
		for _, g := range []string{"/app/a", "/app/b"} {
			if err := w.CreateLogGroup("us-east-1", g); err != nil {
				t.Fatal(err)
			}
		}
		want := w.writeLogs(t, "us-east-1", 300, "/app/a", "/app/b")
		ranged(t, func(process string) Source { return w.source(t, process, "cloudwatch_logs", w.logsConfig("/app/*")) }, w.now.Add(-20*time.Hour), w.now.Add(time.Minute))
		slices.Sort(want)
		if got := slices.Compact(messagesOf(t, announcedAgain(t, w.server).records)); !slices.Equal(got, want) {
			t.Errorf("%d messages, want %d", len(got), len(want))
		}
	})
	t.Run("metrics", func(t *testing.T) {
		w := newWatched(t)
		want := w.measure(t, "us-east-1", "Shop", 20, 10)
		ranged(t, func(process string) Source {
			return w.source(t, process, "cloudwatch_metrics", w.metricsConfig("Shop"))
		}, w.now.Add(-24*time.Hour), w.now)
		slices.Sort(want)
		if got := announcedAgain(t, w.server).distinct(); !slices.Equal(got, want) {
			t.Errorf("%d points, want %d", len(got), len(want))
		}
	})
	t.Run("findings", func(t *testing.T) {
		w := newWatched(t)
		var want []string
		for i := range 200 { // some of the same moment
			want = append(want, w.find(t, "us-east-1", "d1", finding(fmt.Sprintf("f-%03d", i), w.now.Add(-time.Hour*time.Duration(2+i/60*20)), false)))
		}
		w.find(t, "us-east-1", "d1", finding("new", w.now, false))
		ranged(t, func(process string) Source { return w.source(t, process, "guardduty", w.findingsConfig()) }, w.now.Add(-6*24*time.Hour), w.now.Add(-time.Hour))
		slices.Sort(want)
		if got := announcedAgain(t, w.server).distinct(); !slices.Equal(got, want) {
			t.Errorf("%d findings, want %d", len(got), len(want))
		}
	})
}

// source opens one without running it.
func (w *watched) source(t *testing.T, process, kind string, cfg interface{ Validate() error }) Source {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := Catalog.Open(t.Context(), kind, cfg, w.server.deps(t, process))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// covers: pain 9
func TestRangeRefused(t *testing.T) {
	t.Parallel()
	s := newPollServer(t)
	none, err := openPoller(s.deps(t, "a"), fastPoll(), &counter{})
	if err != nil {
		t.Fatal(err)
	}
	if err := none.(Ranged).Range(t.Context(), Range{}); !errors.Is(err, errNoRange) {
		t.Errorf("a source that cannot: %v", err)
	}
	w := newWatched(t)
	h := w.source(t, "b", "cloudwatch_metrics", w.metricsConfig("Shop", "Other"))
	refuse := errors.New("no")
	r := Range{From: w.now.Add(-time.Hour), To: w.now, Plan: func(int, string) error { return refuse }}
	if err := h.(Ranged).Range(t.Context(), r); !errors.Is(err, refuse) {
		t.Errorf("a plan that is refused: %v", err)
	}
}

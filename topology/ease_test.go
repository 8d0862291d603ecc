package topology

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
)

// covers: pain 9, design section 6
func TestEaseDelay(t *testing.T) {
	start := time.Now()
	samples := func(perSecond uint64) (all []easeSample) {
		for i := range uint64(3) {
			all = append(all, easeSample{start.Add(time.Duration(i) * time.Second), i * perSecond})
		}
		return all
	}
	for name, c := range map[string]struct {
		stage easeStage
		want  time.Duration
	}{
		"nothing":          {easeStage{few: 4, many: 100}, 0},
		"few":              {easeStage{few: 4, many: 100, ahead: 4, done: samples(0)}, 0},
		"fast":             {easeStage{few: 4, many: 100, ahead: 50, done: samples(500)}, 100 * time.Millisecond},
		"slow":             {easeStage{few: 4, many: 100, ahead: 50, done: samples(10)}, 5 * time.Second},
		"does not move":    {easeStage{few: 4, many: 100, ahead: 5, done: samples(0)}, easeForever},
		"too many":         {easeStage{few: 4, many: 100, ahead: 101, done: samples(1e6)}, easeForever},
		"measured once":    {easeStage{few: 4, many: 100, ahead: 5, done: samples(1)[:1]}, easeForever},
		"not measured yet": {easeStage{few: 4, many: 100, ahead: 5}, 0},
	} {
		if got := c.stage.delay(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	var s easeStage
	for i := range uint64(1000) {
		s.saw(1, i, start.Add(time.Duration(i)*100*time.Millisecond))
	}
	if span := s.done[len(s.done)-1].at.Sub(s.done[0].at); len(s.done) > 30 || span < easeSpan || span > 2*easeSpan {
		t.Errorf("%d samples over %v are kept", len(s.done), span)
	}
}

// fill stores n small messages.
func fill(t *testing.T, b *Bus, stage Stage, subject, id string, n int) {
	t.Helper()
	out := b.NewOutbox(stage)
	for i := range n {
		if err := out.Publish(t.Context(), Message{Subject: subject, ID: fmt.Sprint(id, i), Data: testFrame(t, 0, fmt.Sprint(id, i), 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// covers: pain 9, design section 6: a stage that is behind is waited for, whichever it is;
// a destination that nobody reads for is not.
func TestEaseWaits(t *testing.T) {
	for _, c := range []struct {
		behind string
		fill   func(b *Bus)
	}{
		{"", func(*Bus) {}},
		{"fetch", func(b *Bus) { fill(t, b, Ingest, NoticeSubject("s"), "n", 30) }},
		{"parse", func(b *Bus) { fill(t, b, Fetch, RecordSubject("s"), "r", 60) }},
		{"dedupe", func(b *Bus) { fill(t, b, Parse, ParsedSubject(0), "p", 300) }},
		{"route", func(b *Bus) { fill(t, b, Dedupe, UniqueSubject(0), "u", 100) }},
		{"", func(b *Bus) { // nobody reads for it
			if err := b.ensureConsumer(t.Context(), DeliverConsumer("web", nil, Start{})); err != nil {
				t.Fatal(err)
			}
			fill(t, b, Route, EventSubject("a.b"), "e", 100)
		}},
	} {
		t.Run(c.behind, func(t *testing.T) {
			b := testBus(t, Limits{Lanes: 2})
			c.fill(b)
			e := b.Ease()
			told := 0
			e.Tell = func() { told++ }
			ctx, cancel := context.WithCancel(t.Context())
			if c.behind != "" {
				e.Tell = func() {
					if told++; told == 3 {
						cancel()
					}
				}
			}
			defer cancel()
			n, err := e.Wait(ctx)
			if e.Behind != c.behind || (err == nil) != (c.behind == "") || err != nil && !errors.Is(err, context.Canceled) || n > 0 {
				t.Errorf("behind %q, %d notices, %v; want %q", e.Behind, n, err, c.behind)
			}
		})
	}
}

// covers: pain 9: a destination that is slow is waited for, until it does not get on.
func TestEaseDestination(t *testing.T) {
	b := testBus(t, Limits{Lanes: 2})
	ctx, cancel := context.WithCancel(t.Context())
	hold := make(chan struct{})
	handed, once := make(chan struct{}), sync.Once{}
	done := make(chan error, 1)
	go func() {
		done <- Consume(ctx, b, DeliverConsumer("web", nil, Start{}), messages.DecodeFrame, func(ctx context.Context, _ In[messages.View], _ Outbox) error {
			once.Do(func() { close(handed) })
			select {
			case <-hold:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	fill(t, b, Route, EventSubject("a.b"), "e", 60)
	<-handed // one that nobody reads for when it is first seen counts as paused
	e := b.Ease()
	await(t, "the destination is seen", func() bool {
		e.looked = time.Time{}
		_, behind, err := e.now(t.Context())
		return err == nil && behind == "destination web"
	})
	for _, s := range e.stages { // as after a while
		s.moved = s.moved.Add(-easeStuck)
	}
	e.looked = time.Time{}
	if _, behind, err := e.now(t.Context()); err != nil || behind != "" {
		t.Errorf("it does not get on, and %q is waited for: %v", behind, err)
	}
	close(hold)
	await(t, "all is delivered", func() bool {
		e.looked = time.Time{}
		_, behind, err := e.now(t.Context())
		return err == nil && behind == "" && e.stages["destination web"].ahead == 0
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// covers: pain 9
func TestReportsAreBounded(t *testing.T) {
	b := testBus(t, Limits{})
	for job := range 3 * keepReports {
		for part := range 3 {
			if err := b.SaveReport(t.Context(), fmt.Sprintf("2026010%d-x", job), part, fmt.Appendf(nil, "%d %d", job, part)); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept := 0
	for job := range 3 * keepReports {
		parts, err := b.Report(t.Context(), fmt.Sprintf("2026010%d-x", job))
		if err != nil {
			t.Fatal(err)
		}
		if len(parts) > 0 {
			kept++
		}
		if len(parts) != 0 && (len(parts) != 3 || string(parts[2]) != fmt.Sprintf("%d 2", job)) {
			t.Errorf("report %d has %q", job, parts)
		}
	}
	if kept != keepReports {
		t.Errorf("%d reports are kept, want %d", kept, keepReports)
	}
}

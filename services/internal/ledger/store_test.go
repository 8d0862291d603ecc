package ledger

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
)

// again writes what a job makes of a pull once more: job may have a destination.
func (b *book) repeat(pull, of, job string) *book {
	b.add(&messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{
		Origin: &messages.Origin{Pull: id(pull), Source: "trail", Bucket: "logs", Key: of + ".json.gz"}, As: messages.Announced_AS_EVENTS, Again: id(of), Job: job,
	}}})
	return b
}

func (b *book) replayed(destination, replay, pull string, sequence, confirmed uint64) *book {
	b.add(&messages.Fact{Kind: &messages.Fact_Delivered{Delivered: &messages.Delivered{
		Destination: destination, Sequence: sequence, EventType: iam, Replay: replay,
		Pulls: []*messages.DeliveredPull{{Pull: id(pull), Confirmed: confirmed}},
	}}})
	return b
}

func (b *book) settledEntry(entry, pull string, how messages.Resolved_How) *book {
	b.add(&messages.Fact{Kind: &messages.Fact_Resolved{Resolved: &messages.Resolved{
		Entry: entry, Pull: id(pull), Stage: "parse", Code: "parse.bad", Records: 2, How: how, Job: "j",
	}}})
	return b
}

// What is done again balances by itself, and changes nothing of what was done before.
func TestDoneAgain(t *testing.T) {
	before := plain().destination("security", 0).delivered("security", "a", 10, 0, nil).report()
	b := plain().destination("security", 0).delivered("security", "a", 10, 0, nil).
		replayed("archive", "job-1", "a", 1, 7).replayed("archive", "job-1", "a", 1, 7).replayed("archive", "job-2", "a", 1, 7).
		repeat("again", "a", "job-3@security").fetched("again", 1, 10).parsed("again", 0, 10, 10).routed("again", iam, span(0, 10), nil, nil).
		replayed("security", "job-3", "again", 99, 10)
	for range 2 {
		r := b.report()
		if !r.Balanced || len(r.Pulls) != 2 {
			t.Fatalf("problems %q of %d pulls", r.Problems, len(r.Pulls))
		}
		for _, p := range r.Pulls {
			if p.Again != "" {
				if p.Job != "job-3" || p.Only != "security" || len(p.Destinations) != 1 || p.Destinations[0].Confirmed != 10 || len(p.Replays) != 0 {
					t.Errorf("the repeat: %+v", p)
				}
				continue
			}
			if !reflect.DeepEqual(p.Destinations, before.Pulls[0].Destinations) && len(p.Destinations) != 2 {
				t.Errorf("the first: %+v, was %+v", p.Destinations, before.Pulls[0].Destinations)
			}
			got := map[string]uint64{}
			for _, s := range p.Replays {
				got[s.Replay] = s.Confirmed
			}
			if !reflect.DeepEqual(got, map[string]uint64{"job-1": 7, "job-2": 7}) {
				t.Errorf("replays %v", got)
			}
		}
		slices.Reverse(b.facts[:len(b.facts)-1]) // in another order; destinations say the same
	}
	// What a repeat for one destination misses there, shows.
	r := plain().repeat("again", "a", "job-3@archive").fetched("again", 1, 10).parsed("again", 0, 10, 10).routed("again", iam, span(0, 10), nil, nil).
		replayed("archive", "job-3", "again", 99, 9).report()
	if r.Balanced || len(r.Problems) != 1 {
		t.Errorf("problems %q", r.Problems)
	}
}

// A destination of a file, in no configuration, never says what it reads.
func TestReplayedToDestinationOfFile(t *testing.T) {
	r := plain().replayed("forensics", "job-1", "a", 1, 7).report()
	if !r.Balanced || len(r.Pulls) != 1 || len(r.Pulls[0].Replays) != 1 || r.Pulls[0].Replays[0].Confirmed != 7 {
		t.Errorf("problems %q, pulls %+v", r.Problems, r.Pulls)
	}
}

// A job tells of a pull of its own when it has copied many frames: by then the first may
// have been delivered.
func TestDeliveredBeforeAnnounced(t *testing.T) {
	b := plain().replayed("archive", "job-1", "again", 98, 4)
	b.repeat("again", "a", "job-1@archive").fetched("again", 1, 10).parsed("again", 0, 10, 10).routed("again", iam, span(0, 10), nil, nil).
		replayed("archive", "job-1", "again", 99, 6)
	r := b.report()
	if !r.Balanced || len(r.Pulls) != 2 {
		t.Fatalf("problems %q of %d pulls", r.Problems, len(r.Pulls))
	}
	if p := r.Pulls[1]; len(p.Destinations) != 1 || p.Destinations[0].Confirmed != 10 || len(p.Replays) != 0 {
		t.Errorf("the repeat: %+v", p)
	}
}

func TestResolvedEntries(t *testing.T) {
	r := (&book{}).object("a").fetched("a", 1, 10).parse(&messages.Parsed{Records: 10, Events: 6, Quarantined: map[string]uint64{"parse.bad": 4}}, "a").
		routed("a", iam, span(0, 6), nil, nil).settledEntry("x", "a", messages.Resolved_HOW_REDRIVEN).settledEntry("x", "a", messages.Resolved_HOW_REDRIVEN).
		settledEntry("y", "a", messages.Resolved_HOW_DISCARDED).report()
	want := []Resolved{{Stage: "parse", Code: "parse.bad", Redriven: 2, Discarded: 2}}
	if !r.Balanced || !reflect.DeepEqual(r.Pulls[0].Resolved, want) || r.Total.Redriven != 2 || r.Total.Discarded != 2 {
		t.Errorf("%q, %+v, %+v", r.Problems, r.Pulls[0].Resolved, r.Total)
	}
}

// Times are of the first and the last fact of a stage, in whatever order they come.
func TestTimes(t *testing.T) {
	b := plain()
	slices.Reverse(b.facts)
	f := New()
	for i, fact := range b.facts {
		f.AddAt(time.Unix(int64(100+i), 0), "test", &messages.Facts{Facts: []*messages.Fact{fact}})
	}
	p := f.Report().Pulls[0]
	at := func(i int64) time.Time { return time.Unix(100+i, 0).UTC() }
	want := []Times{{"ingest", at(7), at(7)}, {"fetch", at(6), at(6)}, {"parse", at(4), at(5)}, {"route", at(2), at(3)}}
	if !reflect.DeepEqual(p.Stages, want) || p.First != at(0) || p.Last != at(7) || p.Destinations[0].First != at(0) || p.Destinations[0].Last != at(1) {
		t.Errorf("%+v", p)
	}
}

// The state of a pull is all there is to it.
func TestStateOfPulls(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 9))
		b, _, _ := scene(r)
		facts := b.facts[:1+r.IntN(len(b.facts))]
		f := New()
		f.AddAt(time.Unix(5, 0), "test", &messages.Facts{Facts: facts})
		for _, p := range f.order {
			p.since, p.details = r.Int64(), []byte("details")
			state := p.encode(nil)
			again, err := f.decode(p.key, state)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again.encode(nil), state) {
				t.Fatalf("seed %d: %+v\nread %+v", seed, p, again)
			}
			if was, is := f.balance(p), f.balance(again); !reflect.DeepEqual(was, is) {
				t.Fatalf("seed %d: %+v\nread %+v", seed, was, is)
			}
			for cut := range min(len(state), 40) {
				if _, err := f.decode(p.key, state[:cut]); err == nil {
					t.Fatalf("%d of %d bytes are a state", cut, len(state))
				}
			}
		}
	}
}

// Whatever is in the database, it is read or refused, and what is read is written alike.
func FuzzState(f *testing.F) {
	b, _, _ := scene(rand.New(rand.NewPCG(1, 9)))
	fold := New()
	fold.Add("test", &messages.Facts{Facts: b.facts})
	for _, p := range fold.order {
		f.Add(p.encode(nil))
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		p, err := fold.decode(messages.ID{}, state)
		if err != nil {
			return
		}
		once := p.encode(nil)
		again, err := fold.decode(messages.ID{}, once)
		if err != nil || !bytes.Equal(again.encode(nil), once) {
			t.Fatalf("%v: what was written is read otherwise", err)
		}
		fold.balance(again)
	})
}

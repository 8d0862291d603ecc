package ledger

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/golden"
)

const (
	iam = "cloud.aws.cloudtrail.iam"
	s3  = "cloud.aws.cloudtrail.s3"
)

// book writes facts as the stages do.
type book struct {
	facts    []*messages.Fact
	sequence uint64 // of UNIQUE and of EVENTS alike
}

func id(pull string) []byte { return messages.NewPull(pull) }

func (b *book) add(f *messages.Fact) { b.facts = append(b.facts, f) }

func (b *book) announce(pull string, as messages.Announced_As, code string) *book {
	b.add(&messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{
		Origin: &messages.Origin{Pull: id(pull), Source: "trail", Bucket: "logs", Key: pull + ".json.gz"}, As: as, Code: code,
	}}})
	return b
}

func (b *book) object(pull string) *book { return b.announce(pull, messages.Announced_AS_OBJECT, "") }

func (b *book) fetch(n *messages.Fetched, pull string) *book {
	n.Pull, n.Source = id(pull), "trail"
	b.add(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: n}})
	return b
}

func (b *book) fetched(pull string, frames uint32, records uint64) *book {
	return b.fetch(&messages.Fetched{Frames: frames, Records: records, Bytes: 10 * records, RawBytes: 100 * records, End: messages.Fetched_END_COMPLETE}, pull)
}

func (b *book) parsed(pull string, frame uint32, records, events uint64) *book {
	return b.parse(&messages.Parsed{FrameNo: frame, Records: records, Events: events}, pull)
}

func (b *book) parse(n *messages.Parsed, pull string) *book {
	n.Pull = id(pull)
	b.add(&messages.Fact{Kind: &messages.Fact_Parsed{Parsed: n}})
	return b
}

// deltas writes ordinals as facts hold them.
func deltas(ordinals []uint64) (out []int64) {
	var last uint64
	for _, o := range ordinals {
		out = append(out, int64(o-last))
		last = o
	}
	return out
}

func span(from, to uint64) (out []uint64) {
	for ; from < to; from++ {
		out = append(out, from)
	}
	return out
}

func (b *book) routed(pull, eventType string, unique, duplicate []uint64, dropped map[string]uint64) *book {
	b.sequence++
	b.add(&messages.Fact{Kind: &messages.Fact_Routed{Routed: &messages.Routed{
		Lane: uint32(b.sequence % 8), Sequence: b.sequence, EventType: eventType, Source: "trail",
		Pulls: []*messages.RoutedPull{{Pull: id(pull), Unique: deltas(unique), Duplicate: deltas(duplicate), Dropped: dropped}},
	}}})
	return b
}

func (b *book) delivered(destination, pull string, confirmed, filtered uint64, quarantined map[string]uint64) *book {
	b.sequence++
	b.add(&messages.Fact{Kind: &messages.Fact_Delivered{Delivered: &messages.Delivered{
		Destination: destination, Sequence: b.sequence, EventType: iam,
		Pulls: []*messages.DeliveredPull{{Pull: id(pull), Confirmed: confirmed, Filtered: filtered, Quarantined: quarantined}},
	}}})
	return b
}

func (b *book) resolved(pull string) *book {
	b.add(&messages.Fact{Kind: &messages.Fact_Resolved{Resolved: &messages.Resolved{Entry: "e", Pull: id(pull), Records: 1, How: messages.Resolved_HOW_REDRIVEN}}})
	return b
}

func (b *book) destination(name string, first uint64, types ...string) *book {
	b.add(&messages.Fact{Kind: &messages.Fact_Destination{Destination: &messages.Destination{Name: name, First: first, Types: types}}})
	return b
}

func (b *book) removed(name string) *book {
	b.add(&messages.Fact{Kind: &messages.Fact_Destination{Destination: &messages.Destination{Name: name, Removed: true}}})
	return b
}

// again repeats the last n facts, as a redelivery does.
func (b *book) again(n int) *book {
	for _, f := range b.facts[len(b.facts)-n:] {
		b.add(proto.Clone(f).(*messages.Fact))
	}
	return b
}

// without takes away the nth fact from the end, counted from 1.
func (b *book) without(n int) *book {
	b.facts = slices.Delete(b.facts, len(b.facts)-n, len(b.facts)-n+1)
	return b
}

func (b *book) report() Report { return fold(b.facts) }

func fold(facts []*messages.Fact) Report {
	f := New()
	f.Add("test", &messages.Facts{Facts: facts})
	return f.Report()
}

// plain is an object of 10 records in 2 frames, 7 events of one type and 3 of another.
func plain() *book {
	const pull = "a"
	b := &book{}
	return b.destination("archive", 0).object(pull).fetched(pull, 2, 10).parsed(pull, 0, 6, 6).parsed(pull, 1, 4, 4).
		routed(pull, iam, span(0, 7), nil, nil).routed(pull, s3, span(7, 10), nil, nil).
		delivered("archive", pull, 7, 0, nil).delivered("archive", pull, 3, 0, nil)
}

type want struct {
	counts   Counts
	dest     Settled // of archive
	open     int
	problems []string // each is part of the one in its place
}

func (w want) check(t *testing.T, r Report) {
	t.Helper()
	if !reflect.DeepEqual(r.Total.Counts, w.counts) {
		t.Errorf("counts %+v\nwant   %+v", r.Total.Counts, w.counts)
	}
	var dest Settled
	if len(r.Destinations) > 0 {
		dest = r.Destinations[0].Settled
	}
	if w.dest.Name == "" {
		w.dest.Name = dest.Name
	}
	if !reflect.DeepEqual(dest, w.dest) {
		t.Errorf("destination %+v\nwant        %+v", dest, w.dest)
	}
	if r.Total.Open != w.open || r.Balanced != (len(w.problems) == 0) {
		t.Errorf("%d open, balanced %v", r.Total.Open, r.Balanced)
	}
	if len(r.Problems) != len(w.problems) {
		t.Fatalf("problems %q, want %q", r.Problems, w.problems)
	}
	for i, p := range w.problems {
		if !strings.Contains(r.Problems[i], p) {
			t.Errorf("problem %q, want %q", r.Problems[i], p)
		}
	}
}

// covers: design promise 4
func TestBalance(t *testing.T) {
	ten := Counts{Records: 10, Events: 10, Unique: 10, Logged: 10}
	all := Settled{Name: "archive", Expected: 10, Confirmed: 10}
	with := func(c Counts, change func(*Counts)) Counts { change(&c); return c }
	withDest := func(s Settled, change func(*Settled)) Settled { change(&s); return s }

	tests := []struct {
		name string
		book *book
		want want
	}{
		{"all is delivered", plain(), want{counts: ten, dest: all}},
		{"every fact comes twice", plain().again(9), want{counts: ten, dest: all}},
		{"announced only", (&book{}).destination("archive", 0).object("a"), want{open: 1, dest: Settled{Name: "archive"}}},
		{
			"under way: parsed and delivered in part, not fetched to the end",
			(&book{}).destination("archive", 0).object("a").parsed("a", 0, 6, 6).routed("a", iam, span(0, 6), nil, nil).delivered("archive", "a", 2, 0, nil),
			want{
				counts: Counts{Records: 6, Events: 6, Unique: 6, Logged: 6}, open: 1,
				dest: Settled{Name: "archive", Expected: 6, Confirmed: 2, Waiting: 4},
			},
		},
		{
			"the fact of a parsed frame is lost", plain().without(5),
			want{
				counts: with(ten, func(c *Counts) { c.Events = 6; c.Missing = 4; c.Extra = 4 }), dest: all,
				problems: []string{"4 of 10 records were fetched, but not parsed; of 2 frames parse has seen 1", "4 events were routed, but not parsed"},
			},
		},
		{
			"a frame of records is lost before parse", (&book{}).destination("archive", 0).object("a").fetched("a", 2, 10).parsed("a", 0, 6, 6).
				routed("a", iam, span(0, 6), nil, nil).delivered("archive", "a", 6, 0, nil),
			want{
				counts: Counts{Records: 10, Events: 6, Unique: 6, Logged: 6, Missing: 4}, dest: Settled{Name: "archive", Expected: 6, Confirmed: 6},
				problems: []string{"4 of 10 records were fetched, but not parsed; of 2 frames parse has seen 1"},
			},
		},
		{
			"parse swallows a record", (&book{}).object("a").fetched("a", 1, 10).parsed("a", 0, 10, 9).routed("a", iam, span(0, 9), nil, nil),
			want{
				counts:   Counts{Records: 10, Events: 9, Unique: 9, Logged: 9, Missing: 1},
				problems: []string{"1 record went into parse and became neither"},
			},
		},
		{
			"parse makes events of nothing", (&book{}).object("a").fetched("a", 1, 10).parsed("a", 0, 10, 12).routed("a", iam, span(0, 12), nil, nil),
			want{
				counts:   Counts{Records: 10, Events: 12, Unique: 12, Logged: 12, Extra: 2},
				problems: []string{"parse made 2 events more than it got records"},
			},
		},
		{
			"an event is lost between parse and route", plain().without(4).routed("a", iam, span(0, 6), nil, nil),
			want{
				counts: with(ten, func(c *Counts) { c.Unique = 9; c.Logged = 9; c.Missing = 1 }), dest: withDest(all, func(s *Settled) { s.Expected = 9; s.Extra = 1 }),
				problems: []string{"1 of 10 events were parsed, but not routed", "archive has settled 10 events, but the event log has 9 for it"},
			},
		},
		{
			"more records parsed than fetched", plain().parsed("a", 2, 3, 3).routed("a", iam, span(10, 13), nil, nil).delivered("archive", "a", 3, 0, nil),
			want{
				counts:   Counts{Records: 10, Events: 13, Unique: 13, Logged: 13, Extra: 3},
				dest:     Settled{Name: "archive", Expected: 13, Confirmed: 13},
				problems: []string{"13 records were parsed and 0 refused of 10 that were fetched"},
			},
		},
		{
			"a delivery is lost", plain().without(1),
			want{
				counts: ten, dest: withDest(all, func(s *Settled) { s.Confirmed = 7; s.Missing = 3 }),
				problems: []string{"destination archive has settled 7 of 10 events"},
			},
		},
		{
			"a frame is in the event log twice", plain().delivered("archive", "a", 3, 0, nil),
			want{
				counts: ten, dest: withDest(all, func(s *Settled) { s.Confirmed = 13; s.Extra = 3 }),
				problems: []string{"destination archive has settled 13 events, but the event log has 10 for it"},
			},
		},
		{
			"parse publishes a frame again and dedupe drops it", plain().parsed("a", 1, 4, 4).routed("a", iam, nil, span(6, 7), nil).routed("a", s3, nil, span(7, 10), nil),
			want{counts: with(ten, func(c *Counts) { c.Republished = 4 }), dest: all},
		},
		{
			"the repeat is heard of first",
			(&book{}).destination("archive", 0).routed("a", iam, nil, span(0, 7), nil).object("a").fetched("a", 1, 10).parsed("a", 0, 10, 10).
				routed("a", s3, span(7, 10), nil, nil).routed("a", iam, span(0, 7), nil, nil).delivered("archive", "a", 10, 0, nil),
			want{counts: with(ten, func(c *Counts) { c.Republished = 7 }), dest: all},
		},
		{
			"dedupe lets a frame pass again", plain().routed("a", s3, span(7, 10), nil, nil).delivered("archive", "a", 3, 0, nil),
			want{
				counts: with(ten, func(c *Counts) { c.Twice = 3; c.Republished = 3; c.Logged = 13 }), dest: withDest(all, func(s *Settled) { s.Expected = 13; s.Confirmed = 13 }),
				problems: []string{"3 events entered the event log again"},
			},
		},
		{
			"the same object is announced again: all duplicates", plain().object("b").fetched("b", 1, 10).parsed("b", 0, 10, 10).
				routed("b", iam, nil, span(0, 7), nil).routed("b", s3, nil, span(7, 10), nil),
			want{counts: Counts{Records: 20, Events: 20, Unique: 10, Duplicates: 10, Logged: 10}, dest: all},
		},
		{
			"the announcement comes again with the same pull", plain().object("a").fetched("a", 2, 10).parsed("a", 0, 6, 6),
			want{counts: ten, dest: all},
		},
		{
			"duplicates within the object", (&book{}).object("a").fetched("a", 1, 10).parsed("a", 0, 10, 10).
				routed("a", iam, span(0, 8), span(8, 10), nil),
			want{counts: Counts{Records: 10, Events: 10, Unique: 8, Duplicates: 2, Logged: 8}},
		},
		{
			"dropped by rules", (&book{}).destination("archive", 0).object("a").fetched("a", 1, 10).parsed("a", 0, 10, 10).
				routed("a", iam, span(0, 10), nil, map[string]uint64{"noise": 3, "sample": 1}).delivered("archive", "a", 6, 0, nil),
			want{
				counts: with(ten, func(c *Counts) { c.Logged = 6; c.Dropped = map[string]uint64{"noise": 3, "sample": 1} }),
				dest:   Settled{Name: "archive", Expected: 6, Confirmed: 6},
			},
		},
		{
			"quarantined by fetch, parse and deliver, skipped by parse",
			(&book{}).destination("archive", 0).object("a").
				fetch(&messages.Fetched{Frames: 1, Records: 12, End: messages.Fetched_END_COMPLETE, Quarantined: map[string]uint64{"fetch.too_large": 2}}, "a").
				parse(&messages.Parsed{Records: 10, Events: 6, Skipped: map[string]uint64{"header": 1}, Quarantined: map[string]uint64{"parse.bad_json": 3}}, "a").
				routed("a", iam, span(4, 10), nil, nil).delivered("archive", "a", 4, 1, map[string]uint64{"deliver.refused": 1}),
			want{
				counts: Counts{
					Records: 12, Events: 6, Unique: 6, Logged: 6, Skipped: map[string]uint64{"header": 1},
					Quarantined: map[string]uint64{"fetch.too_large": 2, "parse.bad_json": 3},
				},
				dest: Settled{Name: "archive", Expected: 6, Confirmed: 4, Filtered: 1, Quarantined: map[string]uint64{"deliver.refused": 1}},
			},
		},
		{
			"a quarantined frame is redriven",
			(&book{}).object("a").fetched("a", 1, 10).parse(&messages.Parsed{Records: 10, Skipped: map[string]uint64{"header": 1}, Quarantined: map[string]uint64{"parse.bad": 9}}, "a").
				parsed("a", 0, 10, 10).routed("a", iam, span(0, 10), nil, nil),
			want{counts: ten},
		},
		{
			"truncated", (&book{}).object("a").fetch(&messages.Fetched{Frames: 1, Records: 10, End: messages.Fetched_END_TRUNCATED, Code: "fetch.cut"}, "a").
				parsed("a", 0, 10, 10).routed("a", iam, span(0, 10), nil, nil),
			want{counts: ten},
		},
		{
			"given up after some frames", (&book{}).object("a").parsed("a", 0, 10, 10).
				fetch(&messages.Fetched{End: messages.Fetched_END_QUARANTINED, Code: "fetch.denied"}, "a").routed("a", iam, span(0, 10), nil, nil),
			want{counts: ten},
		},
		{
			"given up, redriven and read", plain().fetch(&messages.Fetched{End: messages.Fetched_END_QUARANTINED, Code: "fetch.denied"}, "a"),
			want{counts: ten, dest: all},
		},
		{
			"of what is forgotten an entry is resolved", plain().resolved("forgotten"), want{counts: ten, dest: all},
		},
		{
			"never announced", plain().without(8),
			want{counts: ten, dest: all, problems: []string{"something of source trail (pull "}},
		},
		{
			"a destination that never said what it reads", (&book{}).object("a").fetched("a", 1, 1).parsed("a", 0, 1, 1).routed("a", iam, span(0, 1), nil, nil).
				delivered("archive", "a", 1, 0, nil),
			want{
				counts: Counts{Records: 1, Events: 1, Unique: 1, Logged: 1}, dest: Settled{Name: "archive", Confirmed: 1},
				problems: []string{"destination archive has settled events, but never said which it reads"},
			},
		},
		{
			"a destination that began later", plain().without(2).destination("archive", 2),
			want{counts: ten, dest: withDest(all, func(s *Settled) { s.Confirmed = 3; s.Before = 7 })},
		},
		{
			"a destination that was removed", plain().without(2).removed("archive"),
			want{counts: ten, dest: withDest(all, func(s *Settled) { s.Confirmed = 3; s.Abandoned = 7 })},
		},
		{
			"a removed destination that came back", plain().without(2).removed("archive").destination("archive", 1),
			want{
				counts: ten, dest: withDest(all, func(s *Settled) { s.Confirmed = 3; s.Missing = 7 }),
				problems: []string{"destination archive has settled 3 of 10 events"},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.check(t, tt.book.report())
			slices.Reverse(tt.book.facts)
			if !strings.Contains(tt.name, "destination that") { // of what it says, the last fact holds
				tt.want.check(t, tt.book.report())
			}
		})
	}
}

func TestTwoDestinationsWithDifferentFilters(t *testing.T) {
	b := &book{}
	b.destination("security", 1, "cloud.aws.cloudtrail.iam").destination("archive", 0).object("a").fetched("a", 1, 10).parsed("a", 0, 10, 10).
		routed("a", iam, span(0, 7), nil, map[string]uint64{"noise": 1}).routed("a", s3, span(7, 9), span(9, 10), nil).
		delivered("archive", "a", 8, 0, nil).delivered("security", "a", 4, 1, map[string]uint64{"deliver.refused": 1})
	r := b.report()
	if !r.Balanced {
		t.Fatalf("problems %q", r.Problems)
	}
	want := []Settled{
		{Name: "security", Expected: 6, Confirmed: 4, Filtered: 1, Quarantined: map[string]uint64{"deliver.refused": 1}},
		{Name: "archive", Expected: 8, Confirmed: 8},
	}
	for i, w := range want {
		if !reflect.DeepEqual(r.Destinations[i].Settled, w) || !reflect.DeepEqual(r.Pulls[0].Destinations[i], w) {
			t.Errorf("%+v and for the pull %+v\nwant %+v", r.Destinations[i].Settled, r.Pulls[0].Destinations[i], w)
		}
	}
	// One lost at one destination does not show at the other.
	r = b.without(1).delivered("security", "a", 5, 0, nil).report()
	if r.Balanced || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "destination security has settled 5 of 6 events") {
		t.Errorf("problems %q", r.Problems)
	}
	if r.Destinations[0].Missing != 1 || r.Destinations[1].Missing != 0 || r.Pulls[0].State != Unbalanced || r.Total.Unbalanced != 1 {
		t.Errorf("destinations %+v, pull %+v", r.Destinations, r.Pulls[0])
	}
}

// What a rule gave another type is expected where that type is read.
func TestRetypedEventsAreExpectedByTheirNewType(t *testing.T) {
	b := &book{}
	b.destination("security", 0, "cloud.>").destination("audit", 0, "app.audit").object("a").fetched("a", 1, 10).parsed("a", 0, 10, 10).
		routed("a", iam, span(0, 9), span(9, 10), map[string]uint64{"noise": 2}).
		delivered("security", "a", 4, 0, nil).delivered("audit", "a", 3, 0, nil)
	pull := b.facts[len(b.facts)-3].GetRouted().GetPulls()[0]
	pull.Retyped = map[string]uint64{"app.audit": 3}
	r := b.report()
	if !r.Balanced || r.Total.Logged != 7 || r.Destinations[0].Expected != 4 || r.Destinations[1].Expected != 3 {
		t.Errorf("problems %q, total %+v, destinations %+v", r.Problems, r.Total, r.Destinations)
	}
	pull.Retyped = nil
	if r := b.report(); r.Balanced || r.Total.Logged != 7 || r.Destinations[0].Missing != 3 || r.Destinations[1].Extra != 3 {
		t.Errorf("problems %q, destinations %+v", r.Problems, r.Destinations)
	}
}

// Where the types of a destination change, nobody knows which events were logged
// before: of types that it did not always read none is called missing or too much.
func TestTypesThatChange(t *testing.T) {
	books := func() *book {
		b := &book{}
		for _, pull := range []string{"a", "b"} {
			b.object(pull).fetched(pull, 1, 4).parsed(pull, 0, 4, 4)
		}
		return b.routed("a", iam, span(0, 4), nil, nil).routed("b", s3, span(0, 4), nil, nil)
	}
	tests := []struct {
		name      string
		now, once []string
		iam, s3   uint64 // delivered
		want      Settled
		problems  int
	}{
		{"from one type to another", []string{s3}, []string{iam}, 4, 1, Settled{Expected: 8, Confirmed: 5, Before: 3}, 0},
		{"one type more", []string{iam, s3}, []string{iam}, 4, 0, Settled{Expected: 8, Confirmed: 4, Before: 4}, 0},
		{"one type less", []string{iam}, []string{iam, s3}, 4, 4, Settled{Expected: 8, Confirmed: 8}, 0},
		{"what was always read is missed", []string{iam}, []string{iam, s3}, 1, 0, Settled{Expected: 8, Confirmed: 1, Before: 4, Missing: 3}, 1},
		{"what was never read is too much", []string{iam}, []string{iam}, 4, 1, Settled{Expected: 4, Confirmed: 5, Extra: 1}, 1},
		{"the order of the facts is of no account", []string{iam}, []string{s3}, 4, 4, Settled{Expected: 8, Confirmed: 8}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := books().destination("archive", 1, tt.once...).delivered("archive", "a", tt.iam, 0, nil).destination("archive", 1, tt.now...)
			r := b.delivered("archive", "b", tt.s3, 0, nil).report()
			tt.want.Name = "archive"
			if got := r.Destinations[0].Settled; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if len(r.Problems) != tt.problems {
				t.Errorf("problems: %q", r.Problems)
			}
		})
	}
}

func TestDestinationsReadByWildcard(t *testing.T) {
	tests := []struct {
		types     []string
		eventType string
		want      bool
	}{
		{nil, "anything.at.all", true},
		{[]string{"cloud.aws.cloudtrail.iam"}, "cloud.aws.cloudtrail.iam", true},
		{[]string{"cloud.aws.cloudtrail.iam"}, "cloud.aws.cloudtrail.iam2", false},
		{[]string{"cloud.aws.cloudtrail.iam"}, "cloud.aws.cloudtrail", false},
		{[]string{"cloud.aws.cloudtrail"}, "cloud.aws.cloudtrail.iam", false},
		{[]string{"cloud.aws.cloudtrail.*"}, "cloud.aws.cloudtrail.iam", true},
		{[]string{"cloud.*.cloudtrail.iam"}, "cloud.aws.cloudtrail.iam", true},
		{[]string{"*"}, "cloud.aws", false},
		{[]string{"cloud.>"}, "cloud.aws.cloudtrail.iam", true},
		{[]string{"cloud.>"}, "cloud", false},
		{[]string{"cloud.>.iam"}, "cloud.aws.iam", false},
		{[]string{">"}, "cloud", true},
		{[]string{"web.>", "cloud.*.*"}, "cloud.aws.x", true},
		{[]string{"web.>", "cloud.*.*"}, "cloud.aws.x.y", false},
		{[]string{"form.a_b"}, "form.a b", true}, // as the subject has it
		{[]string{"form.unknown"}, "form.", true},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.types, " ", tt.eventType), func(t *testing.T) {
			if got := (&destination{lists: [][]string{tt.types}}).reads(tt.eventType); got == always != tt.want {
				t.Errorf("reads = %v", got)
			}
		})
	}
}

// Of several messages that are one pull both ingest and parse tell: whichever of
// them is heard of, in whatever order, the books are the same.
// covers: F-5
func TestMessagesOfOnePull(t *testing.T) {
	ids := make([]byte, 48)
	announced := func(ids []byte) *messages.Fact {
		return &messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{
			Origin: &messages.Origin{Pull: id("batch"), Source: "voice"}, As: messages.Announced_AS_EVENTS, Messages: 3, MessageIds: ids,
		}}}
	}
	for name, tell := range map[string]func(b *book){
		"only parse": func(b *book) { b.add(announced(ids)); b.fetched("batch", 1, 3) },
		"both": func(b *book) {
			for _, ids := range [][]byte{nil, ids} {
				b.add(announced(ids))
				b.fetched("batch", 1, 3)
			}
		},
		"ingest late": func(b *book) {
			b.add(announced(ids))
			b.fetched("batch", 1, 3).parsed("batch", 0, 3, 3)
			b.add(announced(nil))
			b.fetched("batch", 1, 3)
		},
	} {
		b := &book{}
		tell(b)
		b.parsed("batch", 0, 3, 3).routed("batch", iam, span(0, 2), []uint64{2}, nil)
		r := b.report()
		if !r.Balanced || len(r.Pulls) != 1 || r.Pulls[0].Messages != 3 || r.Pulls[0].Origin != "3 messages" || r.Total.Records != 3 || r.Total.Duplicates != 1 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestTotalsOfPulls(t *testing.T) {
	b := plain()
	b.announce("test", messages.Announced_AS_TEST, "").announce("removal", messages.Announced_AS_IGNORED, "ingest.removal").
		announce("forged", messages.Announced_AS_QUARANTINED, "ingest.bucket").object("waiting").
		object("digest").fetch(&messages.Fetched{End: messages.Fetched_END_SKIPPED, Code: "digest"}, "digest").
		object("gone").fetch(&messages.Fetched{End: messages.Fetched_END_QUARANTINED, Code: "fetch.gone"}, "gone").
		object("cut").fetch(&messages.Fetched{End: messages.Fetched_END_TRUNCATED, Code: "fetch.cut"}, "cut").
		announce("body", messages.Announced_AS_EVENTS, "").fetched("body", 0, 0).
		fetch(&messages.Fetched{End: messages.Fetched_END_QUARANTINED, Code: "fetch.gone"}, "body"). // read again, when it was gone
		announce("mended", messages.Announced_AS_QUARANTINED, "ingest.bucket").object("mended").fetched("mended", 0, 0)
	r := b.report()
	if !r.Balanced {
		t.Errorf("problems %q", r.Problems)
	}
	want := Total{
		Pulls: 10, Open: 1,
		Announced:        map[string]uint64{"object": 6, "events": 1, "test": 1, "ignored": 1, "quarantined": 1},
		Ended:            map[string]uint64{"complete": 3, "skipped": 1, "quarantined": 1, "truncated": 1},
		PullsSkipped:     map[string]uint64{"test": 1, "ingest.removal": 1, "digest": 1},
		PullsQuarantined: map[string]uint64{"ingest.bucket": 1, "fetch.gone": 1, "fetch.cut": 1},
		Bytes:            100, RawBytes: 1000, Counts: Counts{Records: 10, Events: 10, Unique: 10, Logged: 10},
	}
	if !reflect.DeepEqual(r.Total, want) {
		t.Errorf("total %+v\nwant  %+v", r.Total, want)
	}
	states := map[State]int{}
	for _, p := range r.Pulls {
		states[p.State]++
	}
	if !maps.Equal(states, map[State]int{Balanced: 9, Open: 1}) {
		t.Errorf("states %v", states)
	}
}

// scene makes the facts of many pulls through all stages, and what they must add
// up to.
func scene(r *rand.Rand) (b *book, total Counts, dests []Settled) {
	b = &book{}
	b.destination("archive", 0).destination("security", 1, "cloud.*.cloudtrail.iam", "web.>")
	archive, security := Settled{Name: "archive"}, Settled{Name: "security"}
	deliver := func(s *Settled, pull string, n uint64) {
		for n > 0 {
			part := 1 + r.Uint64N(n)
			filtered := r.Uint64N(part + 1)
			var refused map[string]uint64
			if r.IntN(4) == 0 && filtered > 0 {
				filtered--
				refused = map[string]uint64{"deliver.refused": 1}
				(*counts)(&s.Quarantined).add(refused)
			}
			b.delivered(s.Name, pull, part-filtered-counts(refused).sum(), filtered, refused)
			s.Confirmed += part - filtered - counts(refused).sum()
			s.Filtered += filtered
			s.Expected += part
			n -= part
		}
	}
	for i := range 3 + r.IntN(20) {
		pull := strconv.Itoa(i)
		b.object(pull)
		if r.IntN(8) == 0 {
			continue // open
		}
		frames := uint32(r.IntN(5))
		var next, tooLarge uint64
		for frame := range frames {
			if r.IntN(10) == 0 {
				tooLarge++
				next++
			}
			n := 1 + r.Uint64N(300)
			ordinals := span(next, next+n)
			next += n
			r.Shuffle(len(ordinals), func(i, j int) { ordinals[i], ordinals[j] = ordinals[j], ordinals[i] })
			parsed := &messages.Parsed{FrameNo: frame, Records: n}
			if r.IntN(4) == 0 {
				parsed.Skipped = map[string]uint64{"header": 1}
			} else if r.IntN(4) == 0 {
				parsed.Quarantined = map[string]uint64{"parse.bad_json": 1}
			}
			refused := counts(parsed.GetSkipped()).sum() + counts(parsed.GetQuarantined()).sum()
			ordinals = ordinals[refused:]
			parsed.Events = uint64(len(ordinals))
			b.parse(parsed, pull)
			total.Records += n
			total.Events += parsed.GetEvents()
			(*counts)(&total.Skipped).add(parsed.GetSkipped())
			(*counts)(&total.Quarantined).add(parsed.GetQuarantined())
			for len(ordinals) > 0 {
				part := ordinals[:1+r.IntN(len(ordinals))]
				ordinals = ordinals[len(part):]
				eventType := []string{iam, s3, "web.x"}[r.IntN(3)]
				unique, duplicate := part, []uint64(nil)
				switch r.IntN(4) {
				case 0:
					unique, duplicate = nil, part
				case 1:
					unique, duplicate = part[:len(part)/2], part[len(part)/2:]
				}
				var dropped map[string]uint64
				if r.IntN(3) == 0 && len(unique) > 0 {
					dropped = map[string]uint64{"noise": 1 + r.Uint64N(uint64(len(unique)))}
				}
				b.routed(pull, eventType, unique, duplicate, dropped)
				logged := uint64(len(unique)) - counts(dropped).sum()
				total.Unique += uint64(len(unique))
				total.Duplicates += uint64(len(duplicate))
				total.Logged += logged
				(*counts)(&total.Dropped).add(dropped)
				deliver(&archive, pull, logged)
				if eventType != s3 {
					deliver(&security, pull, logged)
				}
				if r.IntN(6) == 0 { // parse crashed and publishes it again
					b.routed(pull, eventType, nil, part, nil)
					total.Republished += uint64(len(part))
				}
			}
		}
		if tooLarge > 0 {
			(*counts)(&total.Quarantined).add(map[string]uint64{"fetch.too_large": tooLarge})
			total.Records += tooLarge
		}
		fetched := &messages.Fetched{Frames: frames, Records: next, End: messages.Fetched_END_COMPLETE}
		if tooLarge > 0 {
			fetched.Quarantined = map[string]uint64{"fetch.too_large": tooLarge}
		}
		b.fetch(fetched, pull)
	}
	return b, total, []Settled{archive, security}
}

// Whatever the order and however often facts come, the sums are exact.
func TestFactsInAnyOrderAndNumber(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 5))
		b, total, dests := scene(r)
		facts := slices.Clone(b.facts)
		for range r.IntN(len(facts)) { // repeats, which are other objects with the same content
			facts = append(facts, proto.Clone(facts[r.IntN(len(facts))]).(*messages.Fact))
		}
		r.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
		f := New()
		for len(facts) > 0 {
			n := 1 + r.IntN(len(facts))
			f.Add("test", &messages.Facts{Facts: facts[:n]})
			facts = facts[n:]
			if r.IntN(3) == 0 {
				f.Report() // looking changes nothing
			}
		}
		got := f.Report()
		if !got.Balanced {
			t.Fatalf("seed %d: %q", seed, got.Problems)
		}
		if !reflect.DeepEqual(got.Total.Counts, total) {
			t.Fatalf("seed %d: total %+v\nwant %+v", seed, got.Total.Counts, total)
		}
		for _, d := range got.Destinations {
			want := dests[slices.IndexFunc(dests, func(s Settled) bool { return s.Name == d.Name })]
			if !reflect.DeepEqual(d.Settled, want) {
				t.Fatalf("seed %d: destination %+v\nwant %+v", seed, d.Settled, want)
			}
		}
		inOrder := b.report()
		byPull := func(a, b Pull) int { return strings.Compare(a.Pull, b.Pull) }
		slices.SortFunc(got.Pulls, byPull)
		slices.SortFunc(inOrder.Pulls, byPull)
		byName := func(a, b Settled) int { return strings.Compare(a.Name, b.Name) }
		for i := range got.Pulls {
			slices.SortFunc(got.Pulls[i].Destinations, byName)
			slices.SortFunc(inOrder.Pulls[i].Destinations, byName)
		}
		if !reflect.DeepEqual(got.Pulls, inOrder.Pulls) {
			t.Fatalf("seed %d: pulls %+v\nin order %+v", seed, got.Pulls, inOrder.Pulls)
		}
	}
}

// Any one fact about what passed that is lost for good must show.
func TestEveryLostFactShows(t *testing.T) {
	shown := 0
	for seed := range uint64(6) {
		b, total, _ := scene(rand.New(rand.NewPCG(seed, 6)))
		for i, lost := range b.facts {
			if !weighty(lost) {
				continue
			}
			r := fold(slices.Delete(slices.Clone(b.facts), i, i+1))
			if _, fetched := lost.GetKind().(*messages.Fact_Fetched); fetched {
				if r.Total.Open == b.report().Total.Open {
					t.Fatalf("seed %d: without %v no more pulls are open", seed, lost)
				}
				continue
			}
			if r.Total.Republished < total.Republished {
				continue // its repeat stands in for it
			}
			if r.Balanced || len(r.Problems) == 0 {
				t.Fatalf("seed %d: balanced without %v", seed, lost)
			}
			shown++
		}
	}
	if shown < 500 {
		t.Errorf("only %d facts were lost", shown)
	}
}

// weighty facts carry something that is not said elsewhere.
func weighty(f *messages.Fact) bool {
	switch kind := f.GetKind().(type) {
	case *messages.Fact_Announced:
		return false // of an open pull nothing else is known
	case *messages.Fact_Routed:
		return len(kind.Routed.GetPulls()[0].GetUnique()) > 0
	case *messages.Fact_Delivered:
		return true
	case *messages.Fact_Destination:
		return false // one without deliveries is not missed
	}
	return true
}

// The sets of a pull go when it is whole, and what it was stays exact.
func TestMemoryOfClosedPulls(t *testing.T) {
	const pulls, records = 400, 2000
	f := New()
	add := func(b *book) { f.Add("test", &messages.Facts{Facts: b.facts}) }
	ordinals := span(0, records)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b := &book{}
	b.destination("archive", 0)
	for i := range pulls {
		pull := strconv.Itoa(i)
		b.object(pull).fetched(pull, 2, records).parsed(pull, 0, records/2, records/2).parsed(pull, 1, records/2, records/2)
		for lane := range 8 {
			part := ordinals[lane*records/8 : (lane+1)*records/8]
			b.routed(pull, iam, part[5:], part[:5], nil)
			b.delivered("archive", pull, uint64(len(part))-5, 0, nil)
		}
		add(b)
		b.facts = b.facts[:0]
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / pulls; each > 1200 {
		t.Errorf("%d bytes for each closed pull", each)
	}
	r := f.Report()
	if !r.Balanced || r.Total.Unique != pulls*(records-40) || r.Total.Duplicates != pulls*40 {
		t.Errorf("balanced %v, %d unique, %d duplicates, %.3q", r.Balanced, r.Total.Unique, r.Total.Duplicates, r.Problems)
	}
	for _, p := range f.order {
		if p.open != nil {
			t.Fatalf("pull %s is kept open", p.origin)
		}
	}
}

// What comes after a pull is closed is judged as if it were not.
func TestFactsAfterClosing(t *testing.T) {
	b := plain().routed("a", iam, nil, span(0, 7), nil).parsed("a", 1, 4, 4) // repeats
	f := New()
	f.Add("test", &messages.Facts{Facts: b.facts})
	if r := f.Report(); !r.Balanced || r.Total.Republished != 7 || f.order[0].open != nil {
		t.Errorf("total %+v, problems %q, still closed: %v", r.Total, r.Problems, f.order[0].open == nil)
	}
	b.routed("a", iam, span(3, 4), nil, nil).delivered("archive", "a", 1, 0, nil)
	r := b.report()
	if r.Total.Republished != 8 || r.Total.Twice != 1 || r.Total.Unique != 10 || len(r.Problems) != 1 {
		t.Errorf("total %+v, problems %q", r.Total, r.Problems)
	}
}

func TestProblemsAreLimited(t *testing.T) {
	b := &book{}
	for i := range maxProblems + 37 {
		pull := strconv.Itoa(i)
		b.object(pull).fetched(pull, 1, 1)
	}
	r := b.report()
	if len(r.Problems) != maxProblems+1 || !strings.HasPrefix(r.Problems[maxProblems], "and 37 more") || r.Total.Unbalanced != maxProblems+37 {
		t.Errorf("%d problems, the last %q, %d pulls", len(r.Problems), r.Problems[len(r.Problems)-1], r.Total.Unbalanced)
	}
}

// Facts of a later release, and broken ones, do no harm.
func TestStrangeFacts(t *testing.T) {
	f := New()
	f.Add("later", nil)
	f.Add("later", &messages.Facts{Facts: []*messages.Fact{
		nil,
		{},
		{Kind: &messages.Fact_Announced{}},
		{Kind: &messages.Fact_Fetched{}},
		{Kind: &messages.Fact_Parsed{}},
		{Kind: &messages.Fact_Routed{}},
		{Kind: &messages.Fact_Delivered{}},
		{Kind: &messages.Fact_Destination{}},
		{Kind: &messages.Fact_Routed{Routed: &messages.Routed{Sequence: 1 << 63, Pulls: []*messages.RoutedPull{
			nil, {Pull: []byte("short"), Unique: []int64{-1, 1}, Dropped: map[string]uint64{"x": 1 << 63}},
		}}}},
		{Kind: &messages.Fact_Announced{Announced: &messages.Announced{Origin: &messages.Origin{Pull: []byte("m"), MessageId: "m-1"}, As: 99}}},
	}})
	r := f.Report()
	if r.Unread != 2 || r.Facts["later"] != 10 || r.Balanced {
		t.Errorf("%d unread, facts %v, balanced %v", r.Unread, r.Facts, r.Balanced)
	}
	if last := r.Pulls[len(r.Pulls)-1]; last.State != Open || last.Origin != "message m-1" || last.As != "99" {
		t.Errorf("announced as something new: %+v", last)
	}
}

func TestReportAsJSON(t *testing.T) {
	empty, err := json.Marshal(New().Report())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"balanced":true,"problems":[],"total":{"pulls":0,"open":0,"unbalanced":0,"announced":{},"ended":{},"bytes":0,"raw_bytes":0,` +
		`"records":0,"events":0,"unique":0,"duplicates":0,"logged":0,"missing":0},"destinations":[],"pulls":[],"facts":{}}`
	if string(empty) != want {
		t.Errorf("empty:\n%s\nwant\n%s", empty, want)
	}
	full, err := json.MarshalIndent(plain().without(1).report(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/report.json", append(full, '\n'))
}

func BenchmarkAdd(b *testing.B) {
	scene := plain()
	ordinals := span(0, 2000)
	scene.facts = nil
	for lane := range 8 {
		scene.routed("a", iam, ordinals[lane*250:(lane+1)*250], nil, nil)
	}
	facts := &messages.Facts{Facts: scene.facts}
	b.ReportAllocs()
	for b.Loop() {
		f := New()
		f.Add("route", facts)
		if f.order[0].unique != 2000 {
			b.Fatal("wrong sum")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2000, "ns/event")
}

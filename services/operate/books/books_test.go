package books

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// writer makes facts as the stages do, and messages of LEDGER of them.
type writer struct {
	r     *rand.Rand
	facts []*messages.Fact
	// sequences of UNIQUE and EVENTS.
	sequence uint64
}

func (w *writer) add(kind any) {
	f := &messages.Fact{}
	switch k := kind.(type) {
	case *messages.Announced:
		f.Kind = &messages.Fact_Announced{Announced: k}
	case *messages.Fetched:
		f.Kind = &messages.Fact_Fetched{Fetched: k}
	case *messages.Parsed:
		f.Kind = &messages.Fact_Parsed{Parsed: k}
	case *messages.Routed:
		f.Kind = &messages.Fact_Routed{Routed: k}
	case *messages.Delivered:
		f.Kind = &messages.Fact_Delivered{Delivered: k}
	case *messages.Destination:
		f.Kind = &messages.Fact_Destination{Destination: k}
	case *messages.Resolved:
		f.Kind = &messages.Fact_Resolved{Resolved: k}
	}
	w.facts = append(w.facts, f)
}

var types = []string{"cloud.aws.cloudtrail.iam", "cloud.aws.cloudtrail.s3", "web.x"}

// pull writes the facts of one pull through all stages; some pulls lose a fact.
func (w *writer) pull(no int) {
	r := w.r
	origin := &messages.Origin{
		Pull: messages.NewPull(fmt.Sprint(no)), Source: fmt.Sprintf("source%d", no%3), Bucket: "logs", Key: fmt.Sprintf("k/%d.json", no%40), Etag: fmt.Sprint(no),
		Queue: "q", MessageId: fmt.Sprintf("m-%d", no), Created: 1,
	}
	begin := len(w.facts)
	a := &messages.Announced{Origin: origin, As: messages.Announced_AS_OBJECT}
	if no > 5 && r.IntN(6) == 0 {
		a.Again, a.Job = messages.NewPull(fmt.Sprint(no-1)), "20260101-abcdef"
		if r.IntN(2) == 0 {
			a.Job += "@archive"
		}
	}
	w.add(a)
	if r.IntN(10) == 0 {
		return
	}
	var next uint64
	frames := uint32(1 + r.IntN(3))
	for frame := range frames {
		n := 1 + r.Uint64N(200)
		w.add(&messages.Parsed{Pull: origin.GetPull(), FrameNo: frame, Records: n, Events: n - 1, Quarantined: map[string]uint64{"parse.bad": 1}})
		events := make([]int64, 0, n)
		for range n - 1 {
			next++
			events = append(events, int64(next))
		}
		next++
		for len(events) > 0 {
			part := events[:1+r.IntN(len(events))]
			events = events[len(part):]
			var deltas []int64
			var last int64
			for _, o := range part {
				deltas = append(deltas, o-last)
				last = o
			}
			w.sequence++
			cut := r.IntN(len(part) + 1)
			duplicate := slices.Clone(deltas[cut:])
			if cut > 0 && len(duplicate) > 0 {
				duplicate[0] = part[cut]
			}
			eventType := types[r.IntN(len(types))]
			w.add(&messages.Routed{
				Lane: uint32(w.sequence % 8), Sequence: w.sequence, EventType: eventType,
				Pulls: []*messages.RoutedPull{{Pull: origin.GetPull(), Unique: deltas[:cut], Duplicate: duplicate}},
			})
			for _, d := range []string{"archive", "security"} {
				if d == "security" && eventType == "web.x" {
					continue
				}
				w.add(&messages.Delivered{
					Destination: d, Sequence: w.sequence, EventType: eventType,
					Pulls: []*messages.DeliveredPull{{Pull: origin.GetPull(), Confirmed: uint64(cut)}},
				})
				if r.IntN(5) == 0 {
					w.add(&messages.Delivered{
						Destination: d, Sequence: w.sequence, EventType: eventType, Replay: "20260101-abcdef",
						Pulls: []*messages.DeliveredPull{{Pull: origin.GetPull(), Confirmed: uint64(cut)}},
					})
				}
			}
		}
	}
	w.add(&messages.Fetched{Pull: origin.GetPull(), Frames: frames, Records: next, Bytes: 10, RawBytes: 100, End: messages.Fetched_END_COMPLETE})
	if r.IntN(3) == 0 {
		w.add(&messages.Resolved{Entry: fmt.Sprint("e", no), Pull: origin.GetPull(), Stage: "parse", Code: "parse.bad", Records: 1, How: messages.Resolved_HOW_REDRIVEN, Job: "j"})
	}
	if r.IntN(6) == 0 {
		at := begin + r.IntN(len(w.facts)-begin)
		w.facts = slices.Delete(w.facts, at, at+1)
	}
}

// random makes facts of many pulls, repeated and out of order, and two destinations of
// which one changes.
func random(r *rand.Rand, pulls int) []*messages.Fact {
	w := &writer{r: r}
	for i := range pulls {
		w.pull(i)
	}
	facts := w.facts
	for range len(facts) / 4 {
		facts = append(facts, proto.CloneOf(facts[r.IntN(len(facts))]))
	}
	for i := range facts { // not far
		j := max(0, i-r.IntN(60))
		facts[i], facts[j] = facts[j], facts[i]
	}
	said := &writer{r: r}
	said.add(&messages.Destination{Name: "archive", First: 1})
	said.add(&messages.Destination{Name: "security", First: 1, Types: []string{"cloud.>"}})
	facts = slices.Concat(said.facts, facts)
	said = &writer{r: r}
	switch r.IntN(3) {
	case 0:
		said.add(&messages.Destination{Name: "security", First: 1, Types: []string{"cloud.aws.cloudtrail.iam"}})
	case 1:
		said.add(&messages.Destination{Name: "archive", Removed: true})
	case 2:
		said.add(&messages.Destination{Name: "new", First: 1})
	}
	return slices.Insert(facts, r.IntN(len(facts)), said.facts...)
}

// store makes messages of LEDGER.
func store(r *rand.Rand, facts []*messages.Fact) (all []topology.Stored) {
	for i := 0; i < len(facts); {
		n := min(1+r.IntN(40), len(facts)-i)
		sequence := uint64(len(all) + 1)
		all = append(all, topology.Stored{
			Subject: "penstock.ledger.test", Sequence: sequence, Time: time.Unix(1_700_000_000+int64(sequence), 0),
			Data: messages.EncodeFacts(&messages.Facts{Version: 1, Stage: "test", Facts: facts[i : i+n]}),
		})
		i += n
	}
	return all
}

func openBooks(t testing.TB, dir string, o Options) *Books {
	t.Helper()
	b, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func newTestFolder(t testing.TB, b *Books) *folder {
	t.Helper()
	f, err := newFolder(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// inMemory is what the facts add up to without a database.
func inMemory(t testing.TB, all []topology.Stored) ledger.Report {
	t.Helper()
	f := ledger.New()
	for _, m := range all {
		facts, err := messages.DecodeFacts(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		f.AddAt(m.Time, facts.GetStage(), facts)
	}
	return f.Report()
}

// same compares the books with the sums in memory.
func same(t testing.TB, b *Books, want ledger.Report) {
	t.Helper()
	s, err := b.Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s.Total, want.Total) {
		t.Fatalf("total %+v\nwant  %+v", s.Total, want.Total)
	}
	if !reflect.DeepEqual(s.Destinations, want.Destinations) {
		t.Fatalf("destinations %+v\nwant %+v", s.Destinations, want.Destinations)
	}
	if !reflect.DeepEqual(s.Facts, want.Facts) || s.Unread != want.Unread || s.Balanced != (want.Total.Unbalanced == 0) {
		t.Fatalf("facts %v, balanced %v; want %v", s.Facts, s.Balanced, want.Facts)
	}
	got := map[string]ledger.Pull{}
	for after, more := "", true; more; more = after != "" {
		page, err := b.Pulls(t.Context(), Filter{Limit: 70, After: after})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.Pulls {
			if (p.State == ledger.Unbalanced) == p.Since.IsZero() {
				t.Fatalf("%s since %v", p.State, p.Since)
			}
			p.Since = time.Time{}
			if _, twice := got[p.Pull]; twice {
				t.Fatalf("pull %s is on two pages", p.Pull)
			}
			got[p.Pull] = p
		}
		after = page.Next
	}
	if len(got) != len(want.Pulls) {
		t.Fatalf("%d pulls, want %d", len(got), len(want.Pulls))
	}
	unbalanced := 0
	for _, p := range want.Pulls {
		if !reflect.DeepEqual(got[p.Pull], p) {
			t.Fatalf("pull %+v\nwant %+v", got[p.Pull], p)
		}
		if p.State == ledger.Unbalanced {
			unbalanced++
		}
	}
	page, err := b.Pulls(t.Context(), Filter{State: ledger.Unbalanced, Limit: MaxPulls})
	if err != nil || len(page.Pulls) != unbalanced {
		t.Fatalf("%d unbalanced pulls are found, want %d: %v", len(page.Pulls), unbalanced, err)
	}
	sources, err := b.Sources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sum ledger.Total
	for i := range sources {
		sum.Join(&sources[i].Total)
	}
	if sum.Pulls != want.Total.Pulls || sum.Unique != want.Total.Unique || sum.Unbalanced != want.Total.Unbalanced {
		t.Fatalf("sources add up to %+v", sum)
	}
}

// Whatever the order of the facts, wherever a transaction or the process ends, each
// counts once: the books are what the sums in memory are.
// covers: design promise 4
func TestFactsCountOnce(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		all := store(r, random(r, 80))
		dir := t.TempDir()
		var f *folder
		var b *Books
		crashes := 0
		for at := 0; at < len(all); {
			if b == nil {
				var err error
				if b, err = Open(t.Context(), dir, Options{}); err != nil {
					t.Fatal(err)
				}
			}
			if f == nil {
				f = newTestFolder(t, b)
				at = int(f.position) // as a reader of the stream does
				if r.IntN(3) == 0 {
					failAfter(f, r.IntN(200))
				}
			}
			n := min(1+r.IntN(60), len(all)-at)
			if err := f.add(all[at : at+n]); err != nil {
				if !errors.Is(err, errInjected) {
					t.Fatal(err)
				}
				crashes++
				f.close()
				f = nil
				continue
			}
			at += n
			switch r.IntN(8) {
			case 0:
				f.close()
				f = nil
			case 1:
				f.close()
				f = nil
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				b = nil
			}
		}
		if f != nil {
			f.close()
		}
		if b != nil {
			_ = b.Close()
		}
		same(t, openBooks(t, dir, Options{}), inMemory(t, all))
		if seed == 0 && crashes == 0 {
			t.Error("nothing crashed")
		}
	}
}

var errInjected = errors.New("the disk is gone")

// failAfter has a statement fail after some others.
func failAfter(f *folder, n int) {
	f.fails = func() error {
		if n--; n == 0 {
			return errInjected
		}
		return nil
	}
}

// Two processes that fold the same books are never both right: the slower one learns of
// it and changes nothing.
func TestTwoFolders(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	all := store(r, random(r, 60))
	dir := t.TempDir()
	one, two := openBooks(t, dir, Options{}), openBooks(t, dir, Options{})
	f, g := newTestFolder(t, one), newTestFolder(t, two)
	moved := 0
	for at := 0; at < len(all); {
		if r.IntN(2) == 0 {
			f, g = g, f
		}
		at = int(f.position)
		n := min(1+r.IntN(30), len(all)-at)
		if err := f.add(all[at : at+n]); errors.Is(err, errMoved) {
			moved++
			b := f.b
			f.close()
			f = newTestFolder(t, b)
			at = int(f.position)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	f.close()
	g.close()
	if moved == 0 {
		t.Error("nobody was ever slower")
	}
	same(t, one, inMemory(t, all))
}

// What was trimmed before it was folded shows, and accuses nobody.
func TestGap(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	all := store(r, random(r, 60))
	for _, tt := range []struct {
		name     string
		from, to int // what is missing
		problems int
	}{
		{"at the beginning", 0, len(all) / 3, 0},
		{"in the middle", len(all) / 3, len(all) / 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := openBooks(t, t.TempDir(), Options{})
			f := newTestFolder(t, b)
			defer f.close()
			if err := f.add(slices.Delete(slices.Clone(all), tt.from, tt.to)); err != nil {
				t.Fatal(err)
			}
			s, err := b.Summary(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Gaps) != 1 || s.Gaps[0].First != uint64(tt.from)+1 || s.Gaps[0].Last != uint64(tt.to) || s.Total.Partial == 0 {
				t.Errorf("gaps %+v, %d partial", s.Gaps, s.Total.Partial)
			}
			trimmed := 0
			for _, p := range s.Problems {
				if strings.Contains(p, "were trimmed") {
					trimmed++
				}
			}
			if trimmed != tt.problems {
				t.Errorf("problems %q", s.Problems)
			}
			page, err := b.Pulls(t.Context(), Filter{State: ledger.Unbalanced, Limit: MaxPulls})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.prune(t.Context(), s.At.Add(f.b.o.KeepFor-5*time.Second)); err != nil { // some pulls are left
				t.Fatal(err)
			}
			if s, err := b.Summary(t.Context()); err != nil || s.Total.Pulls == 0 || len(s.Gaps) != 1 {
				t.Errorf("gaps %+v of %d pulls, %v", s.Gaps, s.Total.Pulls, err)
			}
			if err := f.prune(t.Context(), s.At.Add(f.b.o.KeepFor+time.Second)); err != nil {
				t.Fatal(err)
			}
			if s, err := b.Summary(t.Context()); err != nil || s.Total.Pulls != 0 || len(s.Gaps) != 0 {
				t.Errorf("gaps %+v of %d pulls, %v", s.Gaps, s.Total.Pulls, err)
			}
			whole := inMemory(t, all)
			for _, p := range page.Pulls { // those that are so without a gap as well
				i := slices.IndexFunc(whole.Pulls, func(w ledger.Pull) bool { return w.Pull == p.Pull })
				if whole.Pulls[i].State != ledger.Unbalanced {
					t.Errorf("pull %s is called unbalanced: %q", p.Pull, p.Problems)
				}
			}
		})
	}
}

func TestDamagedAndNewerBooks(t *testing.T) {
	tests := []struct {
		name string
		harm func(t *testing.T, dir string)
		code string
		fix  string
	}{
		{"no database", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, File), []byte(strings.Repeat("this is no database ", 100)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "books.damaged", "move books.db"},
		{"another program's", func(t *testing.T, dir string) {
			b := openBooks(t, dir, Options{})
			if _, err := b.w.ExecContext(t.Context(), "PRAGMA application_id = 7"); err != nil {
				t.Fatal(err)
			}
		}, "books.damaged", "move books.db"},
		{"newer", func(t *testing.T, dir string) {
			b := openBooks(t, dir, Options{})
			if _, err := b.w.ExecContext(t.Context(), "PRAGMA user_version = 99"); err != nil {
				t.Fatal(err)
			}
		}, "books.newer", "a newer penstock"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.harm(t, dir)
			b, err := Open(t.Context(), dir, Options{})
			if b != nil || fault.CodeOf(err) != tt.code || fault.ClassOf(err) != fault.Stop || !strings.Contains(err.Error(), tt.fix) {
				t.Errorf("%v", err)
			}
			if _, err := OpenReadOnly(t.Context(), dir); fault.CodeOf(err) != tt.code {
				t.Errorf("for reading: %v", err)
			}
		})
	}
	if _, err := OpenReadOnly(t.Context(), t.TempDir()); fault.CodeOf(err) != "books.open_failed" {
		t.Errorf("books that are not there: %v", err)
	}
}

// Damage in the middle of the file shows when it is met, as such.
func TestDamageWhileFolding(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 3))
	all := store(r, random(r, 200))
	dir := t.TempDir()
	b, err := Open(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := newTestFolder(t, b)
	if err := f.add(all[:len(all)/2]); err != nil {
		t.Fatal(err)
	}
	f.close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, File)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for at := 8192; at < len(data); at++ {
		data[at] ^= 0x5a
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err = Open(t.Context(), dir, Options{}); err == nil {
		defer func() { _ = b.Close() }()
		if f, err = newFolder(t.Context(), b); err == nil {
			defer f.close()
			err = b.judge(f.add(all[len(all)/2:]), errStore, "fold")
		}
	}
	if fault.CodeOf(err) != "books.damaged" {
		t.Errorf("%v", err)
	}
}

// Pulls that are too old, or too many, go, and take their sums with them.
func TestPrune(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	all := store(r, random(r, 900))
	b := openBooks(t, t.TempDir(), Options{KeepFor: time.Hour})
	f := newTestFolder(t, b)
	defer f.close()
	if err := f.add(all); err != nil {
		t.Fatal(err)
	}
	half := all[len(all)/2].Time
	if err := f.prune(t.Context(), half.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	s, err := b.Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := ledger.Total{Announced: map[string]uint64{}, Ended: map[string]uint64{}}
	report := inMemory(t, all)
	for i := range report.Pulls {
		if !report.Pulls[i].Last.Before(half) {
			want.Add(&report.Pulls[i], 1)
		}
	}
	if !reflect.DeepEqual(s.Total, want) || s.Total.Pulls == 0 || s.Total.Pulls == len(report.Pulls) {
		t.Errorf("total %+v\nwant  %+v", s.Total, want)
	}
	_, before, err := sizes(t.Context(), f.conn)
	if err != nil {
		t.Fatal(err)
	}
	b.o.KeepBytes = before * 3 / 4
	if err := f.prune(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	if _, used, err := sizes(t.Context(), f.conn); err != nil || used > b.o.KeepBytes {
		t.Errorf("%d of %d bytes are in use, %d are allowed: %v", used, before, b.o.KeepBytes, err)
	}
	// A fact of a pull that is gone accuses nobody.
	gone := report.Pulls[0].Pull
	raw, _ := hex.DecodeString(gone)
	late := &writer{}
	late.add(&messages.Parsed{Pull: raw, FrameNo: 77, Records: 1, Events: 1})
	m := store(r, late.facts)
	m[0].Sequence, m[0].Time = f.position+1, all[len(all)-1].Time
	if err := f.add(m); err != nil {
		t.Fatal(err)
	}
	if trail, err := b.Pull(t.Context(), gone); err != nil || trail.Pull.State != ledger.Partial {
		t.Errorf("%v, %+v", err, trail.Pull)
	}
}

// A pull that was unbalanced for a moment, since its facts came out of order, is taken out
// of the sums as what it was, also when others were deleted meanwhile.
func TestPruneBetweenFacts(t *testing.T) {
	b := openBooks(t, t.TempDir(), Options{})
	f := newTestFolder(t, b)
	defer f.close()
	at := uint64(0)
	add := func(kinds ...any) {
		t.Helper()
		w := &writer{r: rand.New(rand.NewPCG(1, 1))}
		for _, k := range kinds {
			w.add(k)
		}
		m := store(w.r, w.facts)
		for i := range m {
			at++
			m[i].Sequence, m[i].Time = at, time.Unix(1_700_000_000+int64(at), 0)
		}
		if err := f.add(m); err != nil {
			t.Fatal(err)
		}
	}
	announce := func(name string) *messages.Announced {
		return &messages.Announced{Origin: &messages.Origin{Pull: messages.NewPull(name), Source: "trail", Bucket: "logs", Key: name}, As: messages.Announced_AS_OBJECT}
	}
	empty := func(name string) *messages.Fetched {
		return &messages.Fetched{Pull: messages.NewPull(name), Source: "trail", End: messages.Fetched_END_COMPLETE}
	}
	forget := func(name string) {
		t.Helper()
		pull := messages.NewPull(name)
		if n, err := f.delete("SELECT row, pull, last, data FROM pulls WHERE pull = ?", pull); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	add(announce("old"), empty("old"), empty("new"), empty("lost"))
	forget("old")
	add(announce("new"))
	if err := b.look(t.Context(), "what is deleted meanwhile", func(v *view) error {
		place, err := readPlace(t.Context(), v.tx)
		if err != nil {
			return err
		}
		forget("lost")
		_, err = b.allSums(v, place.position)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s, err := b.Summary(t.Context())
	if err != nil || s.Total.Pulls != 1 || s.Total.Unbalanced != 0 || s.Total.Partial != 0 || !s.Balanced {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestFind(t *testing.T) {
	w := &writer{r: rand.New(rand.NewPCG(1, 1))}
	object := func(name, key, etag, message string) []byte {
		pull := messages.NewPull(name)
		w.add(&messages.Announced{Origin: &messages.Origin{
			Pull: pull, Source: "trail", Bucket: "logs", Key: key, Etag: etag, Queue: "https://sqs/1/q", MessageId: message, Created: time.Unix(1_600_000_000, 0).UnixNano(),
		}, As: messages.Announced_AS_OBJECT})
		return pull
	}
	through := func(pull []byte, seq uint64, n int64) {
		w.add(&messages.Fetched{Pull: pull, Frames: 1, Records: uint64(n), End: messages.Fetched_END_COMPLETE})
		w.add(&messages.Parsed{Pull: pull, Records: uint64(n), Events: uint64(n)})
		unique := make([]int64, n)
		for i := range unique[1:] {
			unique[i+1] = 1
		}
		w.add(&messages.Routed{Sequence: seq, EventType: types[0], Pulls: []*messages.RoutedPull{{Pull: pull, Unique: unique}}})
	}
	w.add(&messages.Destination{Name: "archive", First: 1})
	a := object("a", "100%/A_b.json", `"e1"`, "11111111-2222-3333-4444-555555555555")
	through(a, 1, 3)
	w.add(&messages.Delivered{Destination: "archive", Sequence: 9, EventType: types[0], Pulls: []*messages.DeliveredPull{{Pull: a, Confirmed: 3}}})
	object("open", "open.json", "e2", "m2")
	again := messages.NewPull("again")
	w.add(&messages.Announced{Origin: &messages.Origin{Pull: again, Source: "trail", Bucket: "logs", Key: "100%/A_b.json"}, As: messages.Announced_AS_OBJECT, Again: a, Job: "job-1"})
	w.add(&messages.Announced{Origin: &messages.Origin{Pull: messages.NewPull("bad"), Source: "trail", Bucket: "logs", Key: "bad.json"}, As: messages.Announced_AS_QUARANTINED, Code: "ingest.bucket"})
	uuid, _ := messages.ParseUUID("99999999-2222-3333-4444-555555555555")
	w.add(&messages.Announced{
		Origin: &messages.Origin{Pull: messages.NewPull("batch"), Source: "voice", Queue: "q2"}, As: messages.Announced_AS_EVENTS, Messages: 2,
		MessageIds: append(make([]byte, 16), uuid[:]...),
	})
	b := openBooks(t, t.TempDir(), Options{})
	f := newTestFolder(t, b)
	defer f.close()
	if err := f.add(store(w.r, w.facts)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what, kind string
		pulls      int
	}{
		{"s3://logs/100%/A_b.json", "object", 2},
		{"11111111-2222-3333-4444-555555555555", "message", 2},
		{"99999999-2222-3333-4444-555555555555", "message", 1},
		{hex.EncodeToString(a), "pull", 2},
		{hex.EncodeToString(again), "pull", 1},
	} {
		j, err := b.Trace(t.Context(), tt.what)
		if err != nil || j.Kind != tt.kind || len(j.Pulls) != tt.pulls {
			t.Errorf("%s: %v, %+v", tt.what, err, j)
		}
	}
	j, err := b.Trace(t.Context(), "s3://logs/100%/A_b.json")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range j.Pulls[0].Steps {
		got = append(got, strings.TrimSpace(s.Stage+" "+s.Destination)+": "+s.What)
		if s.Stage != "balance" && s.At.IsZero() {
			t.Errorf("step %s has no time", s.Stage)
		}
	}
	want := []string{
		"ingest: announced as object by message 11111111-2222-3333-4444-555555555555 of https://sqs/1/q, made 2020-09-13T12:26:40Z",
		"fetch: complete: 3 records in 1 frame, 0 bytes as stored, 0 unpacked",
		"parse: 1 frame of 3 records became 3 events",
		"route: 3 events unique, 0 duplicates; 3 events entered the event log",
		"deliver archive: 3 of 3 events confirmed",
		"again: as pull " + hex.EncodeToString(again) + " by job job-1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("steps\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, what := range []string{"s3://logs/none", "s3://", "s3://logs", "nobody", "", strings.Repeat("0", 32)} {
		if _, err := b.Trace(t.Context(), what); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", what, err)
		}
	}
	for filter, n := range map[Filter]int{
		{Text: "a_B.JSON"}: 2, {Text: "100%/"}: 2, {Text: "%"}: 2, {Text: "nothing"}: 0, {Source: "trail"}: 4, {State: ledger.Open}: 3,
		{State: ledger.Open, Source: "voice"}: 1, {From: time.Unix(1_800_000_000, 0)}: 0, {To: time.Unix(1_800_000_000, 0)}: 5, {Overdue: true}: 0,
	} {
		if page, err := b.Pulls(t.Context(), filter); err != nil || len(page.Pulls) != n || page.Next != "" {
			t.Errorf("%+v: %d pulls, want %d; %v", filter, len(page.Pulls), n, err)
		}
	}
	if _, err := b.Pulls(t.Context(), Filter{State: "odd"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("an odd state: %v", err)
	}
	known2, behind, err := b.Known(t.Context(), known.Question{Bucket: "logs", Objects: []known.Object{
		{Key: "100%/A_b.json", ETag: "e1"}, {Key: "100%/A_b.json", ETag: "other"}, {Key: "open.json"}, {Key: "bad.json"}, {Key: "never"},
	}})
	var was []known.State
	for _, k := range known2 {
		was = append(was, k.State)
	}
	// The second is known by a pull that does not say which content it read.
	if err != nil || behind != 0 || !slices.Equal(was, []known.State{known.Complete, known.Open, known.Open, known.Quarantined, known.Never}) {
		t.Errorf("known: %v, %v", was, err)
	}
	var plan string
	if err := b.r.QueryRowContext(t.Context(), "EXPLAIN QUERY PLAN "+findMessage, 1, 1).Scan(new(int), new(int), new(int), &plan); err != nil || !strings.Contains(plan, "COVERING INDEX pulls_first") {
		t.Errorf("messages are looked for by: %s, %v", plan, err)
	}
	settled, err := b.Settled(t.Context(), types[0], 9)
	if err != nil || !slices.Equal(settled, []SettledFrame{{"archive", true}}) {
		t.Errorf("settled: %v, %v", settled, err)
	}
	if settled, err = b.Settled(t.Context(), types[0], 10); err != nil || !slices.Equal(settled, []SettledFrame{{"archive", false}}) {
		t.Errorf("not settled: %v, %v", settled, err)
	}
}

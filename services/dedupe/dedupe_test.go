package dedupe

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

func frame(t testing.TB, ids ...string) topology.In[messages.View] {
	t.Helper()
	b := messages.NewBuilder(messages.Header{Source: "s", EventType: "t"})
	o := b.Origin(&messages.Origin{Pull: messages.NewPull("p"), Source: "s"})
	for i, id := range ids {
		b.Add(messages.Event{ID: messages.NewID([]byte(id)), Origin: o, Record: uint64(i), Doc: []byte(`{"k":"` + id + `"}`)})
	}
	v, err := messages.DecodeFrame(b.Encode(nil))
	if err != nil {
		t.Fatal(err)
	}
	return topology.In[messages.View]{Value: v}
}

// commits records what a lane commits.
type commits struct {
	outputs [][]byte
	fresh   []int
	err     error
}

func (c *commits) commit(_ context.Context, output, fresh []byte) error {
	if c.err != nil {
		return c.err
	}
	c.outputs = append(c.outputs, append([]byte(nil), output...))
	c.fresh = append(c.fresh, len(fresh)/16)
	return nil
}

func fates(t testing.TB, output []byte) string {
	t.Helper()
	v, err := messages.DecodeFrame(output)
	if err != nil {
		t.Fatal(err)
	}
	s := ""
	for i := range v.Len() {
		if v.Fate(i) == messages.Duplicate {
			s += "d"
		} else {
			s += "u"
		}
	}
	body, err := v.Body(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(body) == 0 {
		s += " no body"
	}
	return s
}

// covers: F-0, LIM-3
func TestFrameMarksDuplicates(t *testing.T) {
	l := New(Defaults(), slog.New(slog.DiscardHandler)).open(0, 8)
	var c commits
	for _, step := range []struct {
		name  string
		ids   []string
		want  string
		fresh int
	}{
		{"all new", []string{"a", "b"}, "uu", 2},
		{"one known", []string{"a", "c"}, "du", 1},
		{"twice in one frame", []string{"e", "e"}, "ud", 1},
		{"all known: the documents stay behind", []string{"a", "b", "c"}, "ddd no body", 0},
		{"empty marker", nil, " no body", 0},
	} {
		if err := l.Frame(t.Context(), frame(t, step.ids...), c.commit); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := fates(t, c.outputs[len(c.outputs)-1]); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
		if got := c.fresh[len(c.fresh)-1]; got != step.fresh {
			t.Errorf("%s: %d fresh ids, want %d", step.name, got, step.fresh)
		}
	}
}

// A frame whose output was not stored is not seen: it passes when it comes again.
func TestFailedCommitForgetsTheFrame(t *testing.T) {
	l := New(Defaults(), slog.New(slog.DiscardHandler)).open(0, 8)
	broken := commits{err: errors.New("no bus")}
	if err := l.Frame(t.Context(), frame(t, "a"), broken.commit); !errors.Is(err, broken.err) {
		t.Fatalf("got %v", err)
	}
	var c commits
	if err := l.Frame(t.Context(), frame(t, "a"), c.commit); err != nil {
		t.Fatal(err)
	}
	if got := fates(t, c.outputs[0]); got != "u" {
		t.Errorf("fates %q, want u", got)
	}
}

func TestRestoredIDsAreKnown(t *testing.T) {
	l := New(Defaults(), slog.New(slog.DiscardHandler)).open(0, 8)
	id := messages.NewID([]byte("a"))
	l.Restore(id[:], time.Now().Add(-time.Hour))
	var c commits
	if err := l.Frame(t.Context(), frame(t, "a", "b"), c.commit); err != nil {
		t.Fatal(err)
	}
	if got := fates(t, c.outputs[0]); got != "du" {
		t.Errorf("fates %q, want du", got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	if err := (Config{Lanes: 257}).Validate(); err == nil {
		t.Error("an empty configuration was taken")
	}
}

// What a replay brings again meets what the same replay has brought, and nothing else;
// live events meet none of it, also after the ids were restored.
//
// covers: design section 5
func TestReplaysHaveASetOfTheirOwn(t *testing.T) {
	l := New(Defaults(), slog.New(slog.DiscardHandler)).open(0, 8)
	defer l.Close()
	replayed := func(replay string, ids ...string) topology.In[messages.View] {
		b := messages.NewBuilder(messages.Header{Source: "s", EventType: "t", Replay: replay})
		o := b.Origin(&messages.Origin{Pull: messages.NewPull("p"), Source: "s"})
		for i, id := range ids {
			b.Add(messages.Event{ID: messages.NewID([]byte(id)), Origin: o, Record: uint64(i), Doc: []byte(`{}`)})
		}
		v, err := messages.DecodeFrame(b.Encode(nil))
		if err != nil {
			t.Fatal(err)
		}
		return topology.In[messages.View]{Value: v}
	}
	// What a lane that takes over finds in UNIQUE.
	before := replayed("one@siem", "z").Value
	l.Restore(before.AppendSeenIDs(nil), time.Now())
	var c commits
	for _, step := range []struct {
		replay, want string
		ids          []string
	}{
		{"", "uu", []string{"a", "b"}},
		{"one@siem", "uu", []string{"a", "b"}},
		{"one@siem", "duu", []string{"b", "c", "d"}},
		{"one", "u", []string{"a"}},
		{"two@siem", "uu", []string{"a", "z"}},
		{"one@siem", "d no body", []string{"z"}},
		{"", "uu", []string{"c", "z"}},
		{"", "d no body", []string{"a"}},
	} {
		if err := l.Frame(t.Context(), replayed(step.replay, step.ids...), c.commit); err != nil {
			t.Fatal(err)
		}
		if got := fates(t, c.outputs[len(c.outputs)-1]); got != step.want {
			t.Errorf("%q %v: %s, want %s", step.replay, step.ids, got, step.want)
		}
	}
}

package books

import (
	"math/rand/v2"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/known"
)

// What was redriven out of an object says nothing of the rest, and what waits for a
// destination has been read.
// covers: pain 9
func TestKnownOfParts(t *testing.T) {
	w := &writer{r: rand.New(rand.NewPCG(1, 1))}
	sequence := uint64(0)
	pull := func(name, key string, as messages.Announced_As, of []byte, end messages.Fetched_End, records, bad uint64) []byte {
		id := messages.NewPull(name)
		w.add(&messages.Announced{Origin: &messages.Origin{Pull: id, Source: "trail", Bucket: "logs", Key: key, Etag: "e"}, As: as, Again: of, Job: "job"})
		w.add(&messages.Fetched{Pull: id, Frames: 1, Records: records, End: end})
		parsed := &messages.Parsed{Pull: id, Records: records, Events: records - bad}
		if bad > 0 {
			parsed.Quarantined = map[string]uint64{"parse.bad": bad}
		}
		w.add(parsed)
		if records > bad {
			sequence++
			unique := make([]int64, records-bad)
			for i := range unique[1:] {
				unique[i+1] = 1
			}
			w.add(&messages.Routed{Sequence: sequence, EventType: types[0], Pulls: []*messages.RoutedPull{{Pull: id, Unique: unique}}})
			w.add(&messages.Delivered{Destination: "archive", Sequence: sequence, EventType: types[0], Pulls: []*messages.DeliveredPull{{Pull: id, Confirmed: records - bad}}})
		}
		return id
	}
	whole := func(key string, end messages.Fetched_End, bad uint64) []byte {
		return pull(key, key, messages.Announced_AS_OBJECT, nil, end, 200, bad)
	}
	redrive := func(name, key string, of []byte, bad uint64) []byte {
		w.add(&messages.Resolved{Entry: name, Pull: of, Stage: "parse", Code: "parse.bad", Records: 1, How: messages.Resolved_HOW_REDRIVEN})
		return pull(name, key, messages.Announced_AS_EVENTS, of, messages.Fetched_END_COMPLETE, 1, bad)
	}
	const complete, truncated = messages.Fetched_END_COMPLETE, messages.Fetched_END_TRUNCATED
	w.add(&messages.Destination{Name: "archive", First: 1})
	redrive("1", "one of two", whole("one of two", complete, 2), 0)
	redrive("2", "cut", whole("cut", truncated, 1), 0)
	back := redrive("3", "back", whole("back", complete, 1), 1)
	redrive("4", "back twice", redrive("5", "back twice", whole("back twice", complete, 1), 1), 1)
	redrive("6", "at last", redrive("7", "at last", whole("at last", complete, 1), 1), 0)
	redrive("8", "part alone", messages.NewPull("forgotten"), 0)
	many := whole("many", complete, 150)
	for i := range 149 {
		redrive("many"+string(rune('a'+i)), "many", many, 0)
	}
	whole("waits", complete, 0)
	w.facts = w.facts[:len(w.facts)-1] // archive has not settled it
	whole("lost", complete, 0)
	w.facts = w.facts[:len(w.facts)-2] // neither routed
	b := openBooks(t, t.TempDir(), Options{})
	f := newTestFolder(t, b)
	defer f.close()
	if err := f.add(store(w.r, w.facts)); err != nil {
		t.Fatal(err)
	}
	want := map[string]known.State{
		"one of two": known.Quarantined, "cut": known.Truncated, "back": known.Quarantined, "back twice": known.Quarantined, "at last": known.Complete,
		"part alone": known.Never, "many": known.Quarantined, "waits": known.Complete, "lost": known.Open,
	}
	for key, state := range want {
		of, _, err := b.Known(t.Context(), known.Question{Bucket: "logs", Objects: []known.Object{{Key: key, ETag: "e"}}})
		if err != nil || of[0].State != state {
			t.Errorf("%s: %+v, want %s; %v", key, of, state, err)
		}
		if key == "back" && of[0].Pull != messages.ID(back).String() {
			t.Errorf("what came back is said to be in pull %s", of[0].Pull)
		}
	}
}

package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock/penstock/services/demo/feed"
)

// Set is one kind of work: what there is to read, how penstock is told to read it, and
// what the floor has to know of it.
type Set struct {
	Name string
	// About says what it is, in a few words.
	About string
	// Make generates it; scale 1 is all of it.
	Make func(scale float64) (*Work, error)
	// Source is the rest of penstock's source of the type sqs, as YAML in flow style.
	Source string
	// Split calls line with each record of an object, or of a message's body. It is all
	// that the floor knows of a format: where a record ends, and what identifies it.
	Split func(body []byte, line func(record []byte) error) error
}

// Work is a generated set.
type Work struct {
	// Keys and Objects are what is in the bucket; each is announced by one message.
	Keys    []string
	Objects [][]byte
	// Bodies are messages that are events themselves, instead of objects.
	Bodies []string
	// Records in all of it, and different ones among them.
	Records, Unique int
	// Raw is the size of the events before compression, in bytes, about.
	Raw int64
}

// Pieces are the objects or messages.
func (w *Work) Pieces() int { return max(len(w.Objects), len(w.Bodies)) }

// sets are all there are. A set more is an entry more.
var sets = []Set{
	{
		Name: "million", About: "1 M CloudTrail events in 500 objects",
		Make:   trail(500, 2000, 0.01),
		Source: readObjects, Split: splitTrail,
	},
	{
		Name: "huge", About: "one object of 500 k CloudTrail events",
		Make: func(scale float64) (*Work, error) {
			return generate(feed.Options{Objects: 1, RecordsPerObject: feed.Fixed(share(500_000, scale)), DuplicateShare: 0.01})
		},
		Source: readObjects, Split: splitTrail,
	},
	{
		Name: "tiny", About: "20 k objects of 5 CloudTrail events",
		Make:   trail(20_000, 5, 0.01),
		Source: readObjects, Split: splitTrail,
	},
	{
		Name: setSQS, About: "300 k events of a telephone system in as many messages",
		Make:   voices,
		Source: "body: events, format: {type: voiso}, wait_time: 1s, max_receivers: 16", Split: splitWhole,
	},
}

// setNamed finds a set.
func setNamed(name string) (Set, error) {
	i := slices.IndexFunc(sets, func(s Set) bool { return s.Name == name })
	if i < 0 {
		names := make([]string, len(sets))
		for k, s := range sets {
			names[k] = s.Name
		}
		return Set{}, fmt.Errorf("no set is called %q; there are %s", name, strings.Join(names, ", "))
	}
	return sets[i], nil
}

const bucket, queue = "bench-trail", "bench"

// readObjects reads the objects that messages announce.
const readObjects = "buckets: [" + bucket + "], wait_time: 5s"

// share is a part of n, at least 1.
func share(n int, scale float64) int { return max(1, int(float64(n)*scale)) }

// trail makes objects with as many CloudTrail events each.
func trail(objects, records int, duplicates float64) func(scale float64) (*Work, error) {
	return func(scale float64) (*Work, error) {
		return generate(feed.Options{Objects: share(objects, scale), RecordsPerObject: feed.Fixed(records), DuplicateShare: duplicates})
	}
}

func generate(o feed.Options) (*Work, error) {
	o.Seed, o.Bucket, o.Level = 1, bucket, 6
	set := feed.CloudTrail(o)
	w := &Work{Keys: make([]string, set.Len()), Objects: make([][]byte, set.Len()), Unique: set.Unique()}
	for i := range w.Objects {
		var b bytes.Buffer
		if err := set.WriteGzip(&b, i); err != nil {
			return nil, err
		}
		w.Keys[i], w.Objects[i] = set.Key(i), bytes.Clone(b.Bytes())
		w.Records += set.Records(i)
	}
	sample, size := min(set.Records(0), 2000), int64(0)
	for k := range sample {
		size += int64(len(set.Record(nil, 0, k))) + 1
	}
	w.Raw = size * int64(w.Records) / int64(sample)
	return w, nil
}

// setSQS is the set of events in message bodies.
const setSQS = "sqs"

func voices(scale float64) (*Work, error) {
	w := &Work{Bodies: make([]string, share(300_000, scale))}
	for i := range w.Bodies {
		w.Bodies[i] = voice(i)
		w.Raw += int64(len(w.Bodies[i]))
	}
	w.Records, w.Unique = len(w.Bodies), len(w.Bodies)
	return w, nil
}

// voice is the i-th event of a telephone system, as one message holds it. Source:
// formats F-1.
func voice(i int) string {
	return fmt.Sprintf(`{"timestamp":"2026-01-05T12:%02d:%02d.%02dZ","type":"user","event":"user_added","callcenter":"tenant-%d","params":{"who":"op%d@example.org",`+
		`"user":"user%d@example.org","access_group":"agent","session":"%08x-%d"}}`, i/6000%60, i/100%60, i%100, i%3, i%9, i, uint32(i)*2654435761, i)
}

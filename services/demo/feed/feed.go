// Package feed generates CloudTrail objects for the demo, the tests and the
// benchmark: the same seed gives the same bytes on every machine.
//
//	Options ──▶ Set ──▶ objects (gzip) ──Install──▶ cloud: bucket + notices in the queue
//
// A record is a pure function of seed, object and ordinal, so any part of a set
// can be made alone, at any time, in any goroutine, without the rest.
//
// Source: formats F-9 for the records and keys, F-5, F-6 and F-7 for the notices.
package feed

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"math"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/demo/cloud"
)

// EventID is the GUID of an event, CloudTrail's eventID.
type EventID [16]byte

// String is the form in the record: 8-4-4-4-12 hex digits.
func (id EventID) String() string { return string(id.append(make([]byte, 0, 36))) }

func (id EventID) append(dst []byte) []byte {
	dst = append(hex.AppendEncode(dst, id[:4]), '-')
	dst = append(hex.AppendEncode(dst, id[4:6]), '-')
	dst = append(hex.AppendEncode(dst, id[6:8]), '-')
	dst = append(hex.AppendEncode(dst, id[8:10]), '-')
	return hex.AppendEncode(dst, id[10:])
}

// Options says what to generate. Only Objects must be set.
type Options struct {
	// Seed makes all the difference between two sets.
	Seed uint64
	// Objects is how many objects there are.
	Objects int
	// RecordsPerObject gives the number of records of an object, counted from 0.
	// It must always give the same. Nil means 2,000 in each.
	RecordsPerObject func(object int) int
	// DuplicateShare is the share of records, from 0 to below 1, that repeat an
	// earlier one byte by byte: of an earlier object of the same account and
	// region, or of the same object when there is none.
	DuplicateShare float64
	// Bucket holds the objects. Default: penstock-demo-trail.
	Bucket string
	// Prefix precedes the keys, with a slash at its end when it is not empty.
	Prefix string
	// OrgID, e.g. o-exampleorgid, gives the keys of an organisation trail.
	OrgID string
	// Accounts and Regions are those of the events, the most frequent first.
	// Defaults: six accounts, five regions.
	Accounts, Regions []string
	// Start is when the first object is delivered; each following 64 come five
	// minutes later. Default: 2026-01-05T00:00:00Z.
	Start time.Time
	// Level of gzip, 1 to 9. Default: 6.
	Level int
}

// Fixed returns a RecordsPerObject that gives n for every object.
func Fixed(n int) func(int) int { return func(int) int { return n } }

// Sizes returns a RecordsPerObject that repeats a list.
func Sizes(list ...int) func(int) int { return func(i int) int { return list[i%len(list)] } }

// Set is a set of objects that need not exist yet. Its methods may be called
// concurrently.
type Set struct {
	o     Options
	pairs [cycle]pair  // account and region of object i are pairs[i%cycle]
	back  [cycle][]int // how many objects before is the same pair
	dup   uint64       // a hash below it makes a duplicate
	zips  sync.Pool
}

// cycle is how many objects are delivered in one slot of five minutes.
const cycle = 64

type pair struct{ account, region string }

// Object is one object of a bucket.
type Object struct {
	Bucket, Key string
	// Body is what is stored: gzip, but for some bad inputs.
	Body []byte
	// Records is how many records it holds, bad ones included.
	Records int
	// EventIDs are those of its good records, in order.
	EventIDs []EventID
	// Denied objects cannot be read.
	Denied bool
}

// CloudTrail returns the set of objects that o describes.
func CloudTrail(o Options) *Set {
	if o.RecordsPerObject == nil {
		o.RecordsPerObject = Fixed(2000)
	}
	if o.Bucket == "" {
		o.Bucket = "penstock-demo-trail"
	}
	if len(o.Accounts) == 0 {
		o.Accounts = []string{cloud.AccountID, "111122223333", "444455556666", "222233334444", "555566667777", "777788889999"}
	}
	if len(o.Regions) == 0 {
		o.Regions = []string{"us-east-1", "eu-west-1", "us-west-2", "eu-central-1", "ap-southeast-2"}
	}
	if o.Start.IsZero() {
		o.Start = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	}
	if o.Level < 1 || o.Level > 9 {
		o.Level = 6
	}
	s := &Set{o: o, dup: uint64(math.Ldexp(min(max(o.DuplicateShare, 0), 0.999), 64))}
	s.zips.New = func() any {
		z, err := gzip.NewWriterLevel(io.Discard, o.Level)
		if err != nil {
			panic(err) // the level is in range
		}
		return z
	}
	for i := range s.pairs {
		r := newRand(o.Seed, saltPair, uint64(i), 0)
		s.pairs[i] = pair{o.Accounts[r.skewed(len(o.Accounts))], o.Regions[r.skewed(len(o.Regions))]}
	}
	for i := range s.pairs {
		for d := 1; d <= cycle; d++ {
			if s.pairs[(i+cycle-d)%cycle] == s.pairs[i] {
				s.back[i] = append(s.back[i], d)
			}
		}
	}
	return s
}

// Len is the number of objects.
func (s *Set) Len() int { return s.o.Objects }

// Records is the number of records in object i.
func (s *Set) Records(i int) int { return s.o.RecordsPerObject(i) }

// Bucket is where the objects belong.
func (s *Set) Bucket() string { return s.o.Bucket }

// Account and Region of object i.
func (s *Set) Account(i int) string { return s.pairs[i%cycle].account }

// Region of object i.
func (s *Set) Region(i int) string { return s.pairs[i%cycle].region }

// delivered is the time in the name of object i.
func (s *Set) delivered(i int) time.Time {
	return s.o.Start.Add(time.Duration(i/cycle) * 5 * time.Minute).UTC()
}

// Key is the key of object i. Source: formats F-9.
func (s *Set) Key(i int) string { return s.key(i, "CloudTrail", ".json.gz") }

func (s *Set) key(i int, folder, ending string) string {
	t, p, org := s.delivered(i), s.pairs[i%cycle], s.o.OrgID
	if org != "" {
		org += "/"
	}
	r := newRand(s.o.Seed, saltKey, uint64(i), 0)
	return fmt.Sprintf("%sAWSLogs/%s%s/%s/%s/%s/%s_%s_%s_%s_%s%s", s.o.Prefix, org, p.account, folder, p.region, t.Format("2006/01/02"),
		p.account, folder, p.region, t.Format("20060102T1504Z"), r.letters(16), ending)
}

// EventIDs yields the id of each record of object i and whether it repeats an
// earlier record. It makes no records and takes about 30 ns for each.
func (s *Set) EventIDs(i int) iter.Seq2[EventID, bool] {
	return func(yield func(EventID, bool) bool) {
		for k := range s.Records(i) {
			oi, ok, dup := s.origin(i, k)
			if !yield(s.eventID(oi, ok), dup) {
				return
			}
		}
	}
}

// Record appends record k of object i to dst: one JSON object, 1.2 to 1.6 KB.
func (s *Set) Record(dst []byte, i, k int) []byte {
	oi, ok, _ := s.origin(i, k)
	g := s.generator(oi)
	return g.record(dst, ok)
}

// WriteJSON writes object i uncompressed: {"Records":[...]} on one line. It needs
// 64 KiB for an object of any size.
func (s *Set) WriteJSON(w io.Writer, i int) error { return s.write(w, i, 0, s.Records(i)) }

const chunk = 64 << 10

// write writes records [from, to) of object i as a whole file.
func (s *Set) write(w io.Writer, i, from, to int) error {
	buf := append(make([]byte, 0, chunk+4096), `{"Records":[`...)
	own := s.generator(i)
	for k := from; k < to; k++ {
		if k > from {
			buf = append(buf, ',')
		}
		if oi, ok, dup := s.origin(i, k); dup && oi != i {
			g := s.generator(oi)
			buf = g.record(buf, ok)
		} else {
			buf = own.record(buf, ok)
		}
		if len(buf) >= chunk {
			if _, err := w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	_, err := w.Write(append(buf, "]}"...))
	return err
}

// WriteGzip writes object i as it is stored. It needs about 1 MiB for an object
// of any size.
func (s *Set) WriteGzip(w io.Writer, i int) error {
	z := s.zips.Get().(*gzip.Writer) //nolint:forcetypeassert // the pool holds nothing else
	defer s.zips.Put(z)
	z.Reset(w)
	if err := s.WriteJSON(z, i); err != nil {
		return err
	}
	return z.Close()
}

// Object makes object i.
func (s *Set) Object(i int) Object {
	var b bytes.Buffer
	b.Grow(200*s.Records(i) + 64) // about what comes out
	if err := s.WriteGzip(&b, i); err != nil {
		panic(err) // a buffer takes everything
	}
	o := Object{Bucket: s.o.Bucket, Key: s.Key(i), Body: bytes.Clone(b.Bytes()), Records: s.Records(i), EventIDs: make([]EventID, 0, s.Records(i))}
	for id := range s.EventIDs(i) {
		o.EventIDs = append(o.EventIDs, id)
	}
	return o
}

// All makes one object after the other.
func (s *Set) All() iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for i := range s.Len() {
			if !yield(s.Object(i)) {
				return
			}
		}
	}
}

// Lazy is object i for an endpoint that does not keep it: its bytes are made
// again for every read. It is made once here, to know the size.
func (s *Set) Lazy(i int) cloud.Object {
	var n counter
	if err := s.WriteGzip(&n, i); err != nil {
		panic(err) // a counter takes everything
	}
	return cloud.Object{Write: func(w io.Writer) error { return s.WriteGzip(w, i) }, Size: int64(n)}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// Unique is the number of different events in the whole set.
func (s *Set) Unique() int {
	n := 0
	for i := range s.Len() {
		for _, dup := range s.EventIDs(i) {
			if !dup {
				n++
			}
		}
	}
	return n
}

// origin returns the object and ordinal whose record is record k of object i,
// and whether that is another one.
func (s *Set) origin(i, k int) (oi, ok int, dup bool) {
	for s.dup > 0 {
		r := newRand(s.o.Seed, saltDuplicate, uint64(i), uint64(k))
		if r.next() >= s.dup {
			break
		}
		from := i
		if back := s.back[i%cycle]; len(back) > 0 && i >= back[0] {
			n := 0 // back[:n] are within the set
			for n < len(back) && back[n] <= i {
				n++
			}
			from = i - back[r.below(n)]
		}
		if n := s.Records(from); from != i && n > 0 {
			i, k, dup = from, r.below(n), true
			continue
		}
		if k == 0 {
			break // nothing comes before it
		}
		k, dup = r.below(k), true
	}
	return i, k, dup
}

func (s *Set) eventID(i, k int) EventID {
	r := newRand(s.o.Seed, saltEventID, uint64(i), uint64(k))
	return r.guid()
}

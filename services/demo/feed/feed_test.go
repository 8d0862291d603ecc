package feed_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.uber.org/goleak"

	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/services/internal/golden"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func raw(t testing.TB, s *feed.Set, i int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteJSON(&b, i); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// covers: F-9
func TestRecords(t *testing.T) {
	type record struct {
		EventVersion, EventID, EventName, EventSource, EventTime, AwsRegion, RecipientAccountID, EventCategory, EventType, RequestID string
		SourceIPAddress, UserAgent, ErrorCode                                                                                        string
		ReadOnly, ManagementEvent                                                                                                    *bool
		UserIdentity                                                                                                                 struct{ Type string }
		RequestParameters, ResponseElements                                                                                          json.RawMessage
	}
	s := feed.CloudTrail(feed.Options{Seed: 1, Objects: 60, RecordsPerObject: feed.Fixed(200)})
	sources, categories, identities, ids := map[string]int{}, map[string]int{}, map[string]int{}, map[string]bool{}
	total, n, failed, escaped, foreign := 0, 0, 0, 0, 0
	for i := range s.Len() {
		b := raw(t, s, i)
		if bytes.ContainsRune(b, '\n') {
			t.Fatalf("object %d has more than one line", i)
		}
		var file struct{ Records []json.RawMessage }
		if err := json.Unmarshal(b, &file); err != nil {
			t.Fatalf("object %d: %v", i, err)
		}
		if len(file.Records) != s.Records(i) {
			t.Fatalf("object %d has %d records, want %d", i, len(file.Records), s.Records(i))
		}
		k := 0
		for id := range s.EventIDs(i) {
			doc := file.Records[k]
			if !bytes.Equal(doc, s.Record(nil, i, k)) {
				t.Fatalf("record %d of object %d differs when made alone", k, i)
			}
			k++
			if len(doc) < 1200 || len(doc) > 1600 {
				t.Errorf("a record of %d bytes: %s", len(doc), doc)
			}
			var r record
			if err := json.Unmarshal(doc, &r); err != nil {
				t.Fatalf("%v in %s", err, doc)
			}
			at, err := time.Parse(time.RFC3339, r.EventTime)
			if err != nil || at.Before(time.Date(2026, 1, 4, 23, 55, 0, 0, time.UTC)) || at.After(time.Date(2026, 1, 5, 0, 1, 0, 0, time.UTC)) {
				t.Errorf("event time %s", r.EventTime)
			}
			if r.EventID != id.String() || r.AwsRegion != s.Region(i) || r.RecipientAccountID != s.Account(i) || r.EventVersion != "1.11" || r.EventName == "" || r.EventType == "" || len(r.RequestID) != 36 ||
				r.SourceIPAddress == "" || r.UserAgent == "" || r.ReadOnly == nil || r.ManagementEvent == nil || r.RequestParameters == nil || r.ResponseElements == nil {
				t.Fatalf("record %s", doc)
			}
			sources[r.EventSource]++
			categories[r.EventCategory]++
			identities[r.UserIdentity.Type]++
			ids[r.EventID] = true
			if r.ErrorCode != "" {
				failed++
			}
			if bytes.Contains(doc, []byte(`\u`)) || bytes.Contains(doc, []byte(`\"`)) {
				escaped++
			}
			if strings.IndexFunc(string(doc), func(r rune) bool { return r > 127 }) >= 0 {
				foreign++
			}
			total += len(doc)
			n++
		}
	}
	if avg := total / n; avg < 1350 || avg > 1450 {
		t.Errorf("%d bytes on average, want about 1400", avg)
	}
	if len(ids) != n {
		t.Errorf("%d ids in %d records", len(ids), n)
	}
	if len(sources) < 20 || len(identities) < 8 || len(categories) != 3 {
		t.Errorf("sources %v, identities %v, categories %v", sources, identities, categories)
	}
	counts := make([]int, 0, len(sources))
	for _, c := range sources {
		counts = append(counts, c)
	}
	slices.Sort(counts)
	if top := counts[len(counts)-1]; top < n/5 || top > n/2 || counts[0] > n/50 {
		t.Errorf("not skewed: %v", sources)
	}
	if failed < n/100 || failed > n/10 || escaped < n/200 || foreign < n/200 {
		t.Errorf("of %d records %d failed, %d have escapes, %d other scripts", n, failed, escaped, foreign)
	}
}

// The bytes of a set are the same for ever: figures of two versions compare.
func TestStableForever(t *testing.T) {
	var b bytes.Buffer
	s := feed.CloudTrail(feed.Options{Seed: 1, Objects: 3, RecordsPerObject: feed.Sizes(3, 0, 500), DuplicateShare: 0.2, Prefix: "trail/", OrgID: "o-exampleorgid"})
	for i := range s.Len() {
		doc := raw(t, s, i)
		fmt.Fprintf(&b, "%s\n%d records, %d bytes, sha256 %x\n", s.Key(i), s.Records(i), len(doc), sha256.Sum256(doc))
		if s.Records(i) < 10 {
			b.Write(append(doc, '\n'))
		}
	}
	golden.Check(t, "testdata/set.golden", b.Bytes())
}

func TestSeeds(t *testing.T) {
	set := func(seed uint64) *feed.Set {
		return feed.CloudTrail(feed.Options{Seed: seed, Objects: 2, RecordsPerObject: feed.Fixed(10)})
	}
	if !bytes.Equal(raw(t, set(1), 1), raw(t, set(1), 1)) {
		t.Error("one seed gives two contents")
	}
	if bytes.Equal(raw(t, set(1), 1), raw(t, set(2), 1)) || set(1).Key(1) == set(2).Key(1) {
		t.Error("two seeds give one content")
	}
	if bytes.Equal(raw(t, set(1), 0), raw(t, set(1), 1)) {
		t.Error("two objects have one content")
	}
}

// covers: F-9
func TestKeys(t *testing.T) {
	layout := regexp.MustCompile(`^trail/AWSLogs/o-exampleorgid/(\d{12})/CloudTrail/([a-z]+-[a-z]+-\d)/(\d{4})/(\d\d)/(\d\d)/(\d{12})_CloudTrail_([a-z]+-[a-z]+-\d)_(\d{4})(\d\d)(\d\d)T\d{4}Z_[A-Za-z0-9]{16}\.json\.gz$`)
	s := feed.CloudTrail(feed.Options{Objects: 1000, Prefix: "trail/", OrgID: "o-exampleorgid"})
	keys := map[string]bool{}
	for i := range s.Len() {
		m := layout.FindStringSubmatch(s.Key(i))
		if m == nil || m[1] != m[6] || m[2] != m[7] || m[3]+m[4]+m[5] != m[8]+m[9]+m[10] || m[1] != s.Account(i) || m[2] != s.Region(i) {
			t.Fatalf("key %s", s.Key(i))
		}
		keys[s.Key(i)] = true
	}
	if len(keys) != 1000 {
		t.Errorf("%d different keys", len(keys))
	}
	if key := feed.CloudTrail(feed.Options{Objects: 1}).Key(0); !strings.HasPrefix(key, "AWSLogs/") {
		t.Errorf("plain key %s", key)
	}
}

func TestDuplicates(t *testing.T) {
	s := feed.CloudTrail(feed.Options{Seed: 5, Objects: 100, RecordsPerObject: feed.Sizes(300, 1, 0, 200), DuplicateShare: 0.03})
	docs := map[string]string{} // id → record
	n, dups, elsewhere := 0, 0, 0
	at := map[string]int{}
	for i := range s.Len() {
		k := 0
		for id, dup := range s.EventIDs(i) {
			doc := string(s.Record(nil, i, k))
			before, known := docs[id.String()]
			if dup != known {
				t.Fatalf("record %d of object %d: marked %v, seen before: %v", k, i, dup, known)
			}
			if known && doc != before {
				t.Fatalf("a duplicate differs:\n%s\n%s", doc, before)
			}
			if known {
				dups++
				if at[id.String()] != i {
					elsewhere++
				}
				if !strings.Contains(doc, s.Account(i)) || !strings.Contains(doc, `"awsRegion":"`+s.Region(i)+`"`) {
					t.Fatalf("a duplicate of another account or region: %s", doc)
				}
			} else {
				docs[id.String()], at[id.String()] = doc, i
			}
			n++
			k++
		}
	}
	if share := float64(dups) / float64(n); share < 0.025 || share > 0.035 {
		t.Errorf("%d of %d are duplicates", dups, n)
	}
	if elsewhere < dups/2 {
		t.Errorf("only %d of %d duplicates cross objects", elsewhere, dups)
	}
	if s.Unique() != len(docs) {
		t.Errorf("Unique says %d, counted %d", s.Unique(), len(docs))
	}
}

// With nearly every record a duplicate, of objects with hardly any, there is
// still a first one.
func TestMostlyDuplicates(t *testing.T) {
	s := feed.CloudTrail(feed.Options{Seed: 5, Objects: 200, RecordsPerObject: feed.Sizes(3, 0, 1), DuplicateShare: 0.95})
	seen := map[feed.EventID]bool{}
	for i := range s.Len() {
		for id, dup := range s.EventIDs(i) {
			if dup != seen[id] {
				t.Fatalf("event %s of object %d: marked %v, seen before: %v", id, i, dup, seen[id])
			}
			seen[id] = true
		}
	}
	if len(seen) == 0 || len(seen) > 150 {
		t.Errorf("%d different events", len(seen))
	}
}

// The events of one object may lie on both sides of midnight.
func TestMidnight(t *testing.T) {
	s := feed.CloudTrail(feed.Options{Objects: 1, RecordsPerObject: feed.Fixed(100), Start: time.Date(2026, 3, 1, 0, 2, 0, 0, time.UTC)})
	from, to := time.Date(2026, 2, 28, 23, 57, 0, 0, time.UTC), time.Date(2026, 3, 1, 0, 2, 0, 0, time.UTC)
	days := map[int]bool{}
	for k := range 100 {
		var r struct{ EventTime time.Time }
		if err := json.Unmarshal(s.Record(nil, 0, k), &r); err != nil {
			t.Fatal(err)
		}
		if r.EventTime.Before(from) || r.EventTime.After(to) {
			t.Errorf("event %d is of %s", k, r.EventTime)
		}
		days[r.EventTime.Day()] = true
	}
	var file struct {
		Records []struct{ EventTime time.Time }
	}
	if err := json.Unmarshal(raw(t, s, 0), &file); err != nil {
		t.Fatal(err)
	}
	for _, r := range file.Records {
		if r.EventTime.Before(from) || r.EventTime.After(to) {
			t.Errorf("in the object, an event is of %s", r.EventTime)
		}
	}
	if !days[28] || !days[1] {
		t.Errorf("days %v", days)
	}
}

func TestGzip(t *testing.T) {
	s := feed.CloudTrail(feed.Options{Seed: 1, Objects: 2})
	for i := range s.Len() {
		o := s.Object(i)
		z, err := gzip.NewReader(bytes.NewReader(o.Body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, raw(t, s, i)) {
			t.Fatalf("object %d: other bytes, %v", i, err)
		}
		if ratio := float64(len(got)) / float64(len(o.Body)); ratio < 8 || ratio > 12 {
			t.Errorf("object %d shrinks %.1f times, want 8 to 12", i, ratio)
		}
		if o.Key != s.Key(i) || o.Bucket != s.Bucket() || o.Records != 2000 || len(o.EventIDs) != 2000 {
			t.Errorf("object %+v", o.Key)
		}
		lazy := s.Lazy(i)
		var again bytes.Buffer
		if err := lazy.Write(&again); err != nil || lazy.Size != int64(len(o.Body)) || !bytes.Equal(again.Bytes(), o.Body) {
			t.Errorf("lazy object %d: %d bytes, want %d, %v", i, lazy.Size, len(o.Body), err)
		}
	}
	fast := feed.CloudTrail(feed.Options{Seed: 1, Objects: 1, Level: 1})
	if len(fast.Object(0).Body) <= len(s.Object(0).Body) {
		t.Error("the level makes no difference")
	}
}

// Objects are the same whoever makes them at the same time.
func TestConcurrentUse(t *testing.T) {
	s := feed.CloudTrail(feed.Options{Seed: 1, Objects: 8, RecordsPerObject: feed.Fixed(200), DuplicateShare: 0.1})
	var want [8][]byte
	i := 0
	for o := range s.All() {
		want[i] = o.Body
		i++
	}
	var wg sync.WaitGroup
	for i := range 8 {
		for range 3 {
			wg.Go(func() {
				if !bytes.Equal(s.Object(i).Body, want[i]) {
					t.Errorf("object %d differs", i)
				}
			})
		}
	}
	wg.Wait()
}

// A writer that fails ends the writing.
func TestWriterFails(t *testing.T) {
	s := feed.CloudTrail(feed.Options{Objects: 1, RecordsPerObject: feed.Fixed(1000)})
	r, w := io.Pipe()
	_ = r.Close()
	if err := s.WriteJSON(w, 0); err == nil {
		t.Error("WriteJSON has not noticed")
	}
	if err := s.WriteGzip(w, 0); err == nil {
		t.Error("WriteGzip has not noticed")
	}
}

// An object of any size needs the same memory, and a record none.
func TestMemory(t *testing.T) {
	s := feed.CloudTrail(feed.Options{Objects: 2, RecordsPerObject: feed.Sizes(100, 20_000), DuplicateShare: 0.03})
	allocs := func(i int) float64 {
		return testing.AllocsPerRun(2, func() {
			if err := s.WriteJSON(io.Discard, i); err != nil {
				t.Error(err)
			}
		})
	}
	if small, large := allocs(0), allocs(1); large > small+2 {
		t.Errorf("%v allocations for 100 records, %v for 20,000", small, large)
	}
}

func BenchmarkEventIDs(b *testing.B) {
	s := feed.CloudTrail(feed.Options{Objects: 50, DuplicateShare: 0.01})
	want := s.Unique()
	for b.Loop() {
		if s.Unique() != want {
			b.Fatal("another count")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/id")
}

func BenchmarkWriteJSON(b *testing.B) {
	s := feed.CloudTrail(feed.Options{Objects: 1, DuplicateShare: 0.01})
	size := len(raw(b, s, 0))
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		var n count
		if err := s.WriteJSON(&n, 0); err != nil || int(n) != size {
			b.Fatalf("%d bytes, want %d: %v", n, size, err)
		}
	}
}

func BenchmarkWriteGzip(b *testing.B) {
	for _, level := range []int{1, 6} {
		b.Run(fmt.Sprint("level", level), func(b *testing.B) {
			s := feed.CloudTrail(feed.Options{Objects: 1, Level: level})
			b.SetBytes(int64(len(raw(b, s, 0))))
			var size count
			for b.Loop() {
				var n count
				if err := s.WriteGzip(&n, 0); err != nil || size != 0 && n != size {
					b.Fatalf("%d bytes, before %d: %v", n, size, err)
				}
				size = n
			}
		})
	}
}

type count int

func (c *count) Write(p []byte) (int, error) {
	*c += count(len(p))
	return len(p), nil
}

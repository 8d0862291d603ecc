package seen

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 5, 7, 44, 54, 0, time.UTC)

const day = 24 * time.Hour

// idsOf returns the ids of the numbers from first on.
func idsOf(first, n int) []byte {
	ids := make([]byte, 0, n*idSize)
	var in [8]byte
	for i := range n {
		binary.BigEndian.PutUint64(in[:], uint64(first+i))
		sum := sha256.Sum256(in[:])
		ids = append(ids, sum[:idSize]...)
	}
	return ids
}

// fastIDs fills ids with numbers that are as good as hashes, and quicker.
func fastIDs(r *rand.Rand, ids []byte) {
	for i := 0; i < len(ids); i += 8 {
		binary.LittleEndian.PutUint64(ids[i:], r.Uint64())
	}
}

func marks(s *Set, ids []byte, now time.Time) (dups []int) {
	if n := s.Mark(ids, now, func(i int) { dups = append(dups, i) }); n != len(dups) {
		panic("Mark does not return how often it called dup")
	}
	return dups
}

func all(n int) []int {
	is := make([]int, n)
	for i := range is {
		is[i] = i
	}
	return is
}

func TestMark(t *testing.T) {
	s := New(Limits{Window: day, MaxIDs: 1_000_000})
	ids := idsOf(0, 1000)
	if dups := marks(s, ids, epoch); dups != nil {
		t.Fatalf("new ids are duplicates: %v", dups)
	}
	s.Commit()
	if dups := marks(s, ids, epoch.Add(time.Second)); !slices.Equal(dups, all(1000)) {
		t.Fatalf("%d of 1000 known ids are duplicates", len(dups))
	}
	s.Commit()
	if s.Len() != 1000 {
		t.Errorf("Len is %d, want 1000", s.Len())
	}
	mixed := slices.Concat(idsOf(2000, 2), idsOf(7, 1), idsOf(2001, 2), idsOf(2000, 1))
	if dups := marks(s, mixed, epoch); !slices.Equal(dups, []int{2, 3, 5}) {
		t.Errorf("duplicates are %v, want 2 (known), 3 and 5 (twice in the frame)", dups)
	}
	if dups := marks(s, nil, epoch); dups != nil {
		t.Errorf("no ids, but duplicates %v", dups)
	}
}

func TestDiscardTakesBackOnlyWhatIsNotCommitted(t *testing.T) {
	s := New(Limits{Window: day, MaxIDs: 1_000_000})
	marks(s, idsOf(0, 500), epoch)
	s.Commit()
	marks(s, idsOf(400, 5000), epoch) // grows the tables as well
	marks(s, idsOf(5400, 100), epoch)
	s.Discard()
	if s.Len() != 500 {
		t.Errorf("Len is %d, want 500", s.Len())
	}
	if dups := marks(s, idsOf(0, 6000), epoch); !slices.Equal(dups, all(500)) {
		t.Errorf("%d duplicates, want the 500 committed ones", len(dups))
	}
	s.Commit()
	s.Discard() // nothing to discard
	if s.Len() != 6000 {
		t.Errorf("Len is %d, want 6000", s.Len())
	}
}

func TestWindow(t *testing.T) {
	tests := []struct {
		name  string
		later time.Duration
		dup   bool
	}{
		{"at once", 0, true},
		{"within", day / 2, true},
		{"at the end", day, true},
		{"a twelfth later", day + day/12, false},
		{"much later", 10 * day, false},
		{"clock goes back", -time.Hour, true},
		{"clock goes far back", -10 * day, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, shift := range []time.Duration{0, time.Hour, 7*time.Hour + 59*time.Minute} {
				s := New(Limits{Window: day, MaxIDs: 1000})
				marks(s, idsOf(1, 1), epoch.Add(shift))
				s.Commit()
				marks(s, idsOf(2, 1), epoch.Add(shift+tt.later/2))
				s.Commit()
				if dup := marks(s, idsOf(1, 1), epoch.Add(shift+tt.later)) != nil; dup != tt.dup {
					t.Errorf("from %s: duplicate %v, want %v", epoch.Add(shift), dup, tt.dup)
				}
				if got := s.Window(epoch.Add(shift + tt.later)); got != day {
					t.Errorf("the window is %s, want it whole", got)
				}
			}
		})
	}
}

func TestExpireFrees(t *testing.T) {
	s := New(Limits{Window: day, MaxIDs: 100_000})
	marks(s, idsOf(0, 1000), epoch)
	s.Commit()
	if s.Expire(epoch.Add(day)); s.Len() != 1000 {
		t.Errorf("%d ids left within the window, want 1000", s.Len())
	}
	if s.Expire(epoch.Add(2 * day)); s.Len() != 0 || s.Bytes() != 0 {
		t.Errorf("%d ids, %d bytes left after the window, want none", s.Len(), s.Bytes())
	}
	if dups := marks(s, idsOf(0, 10), epoch.Add(2*day)); dups != nil {
		t.Errorf("forgotten ids are duplicates: %v", dups)
	}
}

// More ids than allowed: the oldest go, the rest stays, and the window says so
// until it is whole again.
func TestMaxIDs(t *testing.T) {
	const most = 10_000
	s := New(Limits{Window: day, MaxIDs: most})
	now := epoch
	for i := range 30 { // 30,000 ids in half an hour
		marks(s, idsOf(i*1000, 1000), now)
		s.Commit()
		if s.Len() > most {
			t.Fatalf("%d ids, at most %d allowed", s.Len(), most)
		}
		now = now.Add(time.Minute)
	}
	if s.Len() < most*3/5 {
		t.Errorf("only %d ids left of %d allowed", s.Len(), most)
	}
	window := s.Window(now)
	if window < 6*time.Minute || window > 10*time.Minute {
		t.Errorf("the window is %s, want 6 to 10 min", window)
	}
	// All that the window covers is found.
	covered := int(window / time.Minute)
	if dups := marks(s, idsOf((30-covered)*1000, covered*1000), now); len(dups) != covered*1000 {
		t.Errorf("%d duplicates of the %d ids within the window", len(dups), covered*1000)
	}
	s.Discard()
	if dups := marks(s, idsOf(0, 10), now); dups != nil {
		t.Errorf("the oldest ids are still there")
	}
	s.Discard()
	for i := range 30 {
		now = now.Add(time.Hour)
		marks(s, idsOf(1_000_000+i, 1), now)
		s.Commit()
	}
	if got := s.Window(now); got != day {
		t.Errorf("30 quiet hours later the window is %s, want %s", got, day)
	}
}

// A burst after quiet hours does not push out what MaxIDs has room for.
func TestBurstWithinMaxIDs(t *testing.T) {
	s := New(Limits{Window: day, MaxIDs: 10_000})
	n := 0
	for hour := range 24 {
		size := 100
		if hour == 12 {
			size = 7000
		}
		marks(s, idsOf(n, size), epoch.Add(time.Duration(hour)*time.Hour))
		s.Commit()
		n += size
	}
	now := epoch.Add(23 * time.Hour)
	if s.Len() != n || s.Window(now) != day {
		t.Fatalf("%d of %d ids, window %s", s.Len(), n, s.Window(now))
	}
	if dups := marks(s, idsOf(0, n), now); len(dups) != n {
		t.Errorf("%d of %d are duplicates", len(dups), n)
	}
}

func TestDiscardAfterItsTableWasDropped(t *testing.T) {
	s := New(Limits{Window: day, MaxIDs: 1000})
	marks(s, idsOf(0, 5000), epoch)
	s.Discard()
	if s.Len() != 0 {
		t.Errorf("%d ids left", s.Len())
	}
	if dups := marks(s, idsOf(0, 100), epoch); dups != nil {
		t.Errorf("discarded ids are duplicates: %v", dups)
	}
}

// A rebuilt set knows what the old one knew, whatever the order of the blocks.
func TestLoad(t *testing.T) {
	old := New(Limits{Window: day, MaxIDs: 1_000_000})
	for hour := range 30 {
		marks(old, idsOf(hour*1000, 1000), epoch.Add(time.Duration(hour)*time.Hour))
		old.Commit()
	}
	now := epoch.Add(29 * time.Hour)
	type piece struct {
		came time.Time
		ids  []byte
	}
	var pieces []piece
	for came, ids := range old.Blocks() {
		pieces = append(pieces, piece{came, slices.Clone(ids)})
	}
	backwards := slices.Clone(pieces)
	slices.Reverse(backwards)
	for name, order := range map[string][]piece{"forwards": pieces, "backwards": backwards, "twice": append(backwards, pieces...)} {
		s := New(Limits{Window: day, MaxIDs: 1_000_000})
		for _, p := range order {
			s.Load(p.ids, p.came)
		}
		if s.Len() != old.Len() {
			t.Errorf("%s: %d ids, want %d", name, s.Len(), old.Len())
		}
		if dups := marks(s, idsOf(5000, 26_000), now); len(dups) != 25_000 {
			t.Errorf("%s: %d duplicates of the 25000 within the window", name, len(dups))
		}
		s.Discard()
		if s.Expire(now.Add(2 * day)); s.Len() != 0 {
			t.Errorf("%s: %d ids left two days later", name, s.Len())
		}
	}
}

func TestLoadKeepsToTheLimits(t *testing.T) {
	s := New(Limits{Window: day, MaxIDs: 1000})
	marks(s, idsOf(0, 100), epoch)
	s.Commit()
	s.Load(idsOf(1000, 10), epoch.Add(-2*day))
	if s.Len() != 100 {
		t.Errorf("%d ids, want those from before the window left out", s.Len())
	}
	s.Load(idsOf(2000, 5000), epoch.Add(-10*time.Hour))
	if s.Len() > 1000 {
		t.Errorf("%d ids, at most 1000 allowed", s.Len())
	}
	if w := s.Window(epoch); w > 10*time.Hour {
		t.Errorf("the window is %s, though ids of 10 h ago were left out", w)
	}
	if dups := marks(s, idsOf(0, 100), epoch); len(dups) != 100 {
		t.Errorf("%d of the 100 newest ids are left", len(dups))
	}
}

// The set against a map that remembers times, under random work.
func TestAgainstModel(t *testing.T) {
	for round := range uint64(20) {
		r := rand.New(rand.NewPCG(round, 1))
		s := New(Limits{Window: day, MaxIDs: 1 << 40})
		model := map[int]time.Time{}
		pending := map[int]bool{}
		now := epoch
		for range 300 {
			now = now.Add(time.Duration(r.Int64N(int64(day / 20))))
			n := 1 + r.IntN(200)
			numbers := make([]int, n)
			var ids []byte
			for i := range numbers {
				numbers[i] = r.IntN(20_000)
				ids = append(ids, idsOf(numbers[i], 1)...)
			}
			dup := make([]bool, n)
			s.Mark(ids, now, func(i int) { dup[i] = true })
			for i, number := range numbers {
				came, known := model[number]
				age := now.Sub(came)
				if known && age <= day && !dup[i] {
					t.Fatalf("round %d: an id of %s ago is no duplicate", round, age)
				}
				if dup[i] && (!known || age > day+day/12) {
					t.Fatalf("round %d: an id is a duplicate: known %v, %s ago", round, known, age)
				}
				if !dup[i] {
					model[number] = now
					pending[number] = true
				}
			}
			switch r.IntN(4) {
			case 0:
				for number := range pending {
					delete(model, number)
				}
				s.Discard()
				clear(pending)
			case 1, 2:
				s.Commit()
				clear(pending)
			}
		}
	}
}

// The ids of one lane have bits in common, and a sender may see to more. Neither
// crowds the tables. Lanes are made of the last 4 bytes, see messages.ID.Lane.
func TestIDsWithBitsInCommon(t *testing.T) {
	tests := []struct {
		name string
		fix  func(id []byte)
	}{
		{"none", func([]byte) {}},
		{"lane of 64", func(id []byte) { id[15] = id[15]&0xc0 | 5 }},
		{"first half", func(id []byte) { clear(id[:8]) }},
		{"second half", func(id []byte) { clear(id[8:]) }},
		{"first byte of each half", func(id []byte) { id[0], id[8] = 1, 2 }},
		{"last byte of each half", func(id []byte) { id[7], id[15] = 1, 2 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const n = 256_000
			s := New(Limits{Window: day, MaxIDs: 10_000_000})
			ids := make([]byte, n*idSize)
			fastIDs(rand.New(rand.NewPCG(1, 2)), ids)
			for i := 0; i < len(ids); i += idSize {
				tt.fix(ids[i : i+idSize])
			}
			if dups := marks(s, ids, epoch); dups != nil {
				t.Fatalf("%d duplicates", len(dups))
			}
			for i := range s.parts {
				p := &s.parts[i]
				if n := p.alive(&s.alive); n < 800 || n > 1200 {
					t.Fatalf("part %d holds %d ids, want about 1000", i, n)
				}
				full := 0
				for g := range p.groups {
					if zeros(p.words[g*head]) == 0 {
						full++
					}
				}
				if full > int(p.groups)*2/3 {
					t.Fatalf("part %d: %d of %d groups are full", i, full, p.groups)
				}
			}
		})
	}
}

// An id takes 18 bytes at a load of 60 to 80 %, also as the heap sees it, and
// growing takes a small part of it at a time.
func TestBytesPerID(t *testing.T) {
	const n = 1_500_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := New(Limits{Window: day, MaxIDs: 10_000_000})
	r := rand.New(rand.NewPCG(1, 2))
	ids := make([]byte, 1000*idSize)
	lowest, highest := 1000.0, 0.0
	for range n / 1000 {
		fastIDs(r, ids)
		had := s.Bytes()
		s.Mark(ids, epoch, func(int) {})
		s.Commit()
		if s.Len() < 100_000 {
			continue
		}
		per := float64(s.Bytes()) / float64(s.Len())
		lowest, highest = min(lowest, per), max(highest, per)
		if s.Bytes()-had > s.Bytes()/2 {
			t.Fatalf("1000 ids more took %d bytes, with %d before", s.Bytes()-had, had)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	heap := float64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%.1f to %.1f bytes an id; at the end %.1f, on the heap %.1f", lowest, highest, float64(s.Bytes())/n, heap)
	if lowest < 17 || highest > 34 {
		t.Errorf("%.1f to %.1f bytes an id, want 17 to 34", lowest, highest)
	}
	if want := float64(s.Bytes()) / n; heap > 1.15*want {
		t.Errorf("the heap has %.1f bytes an id, Bytes says %.1f", heap, want)
	}
	runtime.KeepAlive(s)
}

func TestMarkDoesNotAllocate(t *testing.T) {
	s := New(Limits{Window: day, MaxIDs: 1_000_000})
	ids := idsOf(0, 1000)
	s.Mark(ids, epoch, func(int) {})
	s.Commit()
	dups := 0
	if n := testing.AllocsPerRun(50, func() {
		dups = s.Mark(ids, epoch, func(int) {})
		s.Commit()
	}); n != 0 || dups != 1000 {
		t.Errorf("%v allocations for 1000 ids (%d duplicates), want none", n, dups)
	}
}

func BenchmarkSet(b *testing.B) {
	for _, size := range []struct {
		name string
		n    int
	}{{"1M", 1_000_000}, {"10M", 10_000_000}} {
		const frame = 1000
		filled := func() (*Set, []byte) {
			s := New(Limits{Window: day, MaxIDs: 2 * size.n})
			r := rand.New(rand.NewPCG(1, 2))
			ids := make([]byte, frame*idSize)
			known := make([]byte, 0, 1000*frame*idSize)
			for i := range size.n / frame {
				fastIDs(r, ids)
				s.Mark(ids, epoch.Add(time.Duration(i)*day/time.Duration(size.n/frame)), func(int) {})
				s.Commit()
				if i%(size.n/frame/1000) == 0 {
					known = append(known, ids...)
				}
			}
			return s, known
		}
		now := epoch.Add(day)
		perID := func(b *testing.B) {
			b.Helper()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/frame, "ns/id")
		}
		b.Run(size.name+"/hit", func(b *testing.B) {
			s, known := filled()
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if n := s.Mark(known[i*frame*idSize:][:frame*idSize], now, func(int) {}); n != frame {
					b.Fatalf("%d of %d found", n, frame)
				}
				i = (i + 1) % 1000
			}
			perID(b)
			b.ReportMetric(float64(s.Bytes())/float64(s.Len()), "B/id")
		})
		b.Run(size.name+"/miss", func(b *testing.B) { // marked and taken back
			s, _ := filled()
			r := rand.New(rand.NewPCG(3, 4))
			ids := make([]byte, 100*frame*idSize)
			fastIDs(r, ids)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if n := s.Mark(ids[i*frame*idSize:][:frame*idSize], now, func(int) {}); n != 0 {
					b.Fatalf("%d found", n)
				}
				s.Discard()
				i = (i + 1) % 100
			}
			perID(b)
		})
		b.Run(size.name+"/insert", func(b *testing.B) {
			s, _ := filled()
			r := rand.New(rand.NewPCG(5, 6))
			ids := make([]byte, frame*idSize)
			b.ReportAllocs()
			for b.Loop() {
				fastIDs(r, ids)
				if n := s.Mark(ids, now, func(int) {}); n != 0 {
					b.Fatalf("%d found", n)
				}
				s.Commit()
			}
			perID(b)
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	const n = 4_000_000
	ids := make([]byte, n*idSize)
	fastIDs(rand.New(rand.NewPCG(1, 2)), ids)
	b.SetBytes(int64(len(ids)))
	for b.Loop() {
		s := New(Limits{Window: day, MaxIDs: 2 * n})
		s.Reserve(n)
		for i := range 4 {
			s.Load(ids[i*len(ids)/4:(i+1)*len(ids)/4], epoch.Add(time.Duration(i)*8*time.Hour))
		}
		if s.Len() != n {
			b.Fatalf("%d of %d ids", s.Len(), n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/id")
}

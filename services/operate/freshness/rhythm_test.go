package freshness

import (
	"math/rand/v2"
	"testing"
	"time"
)

// week is a Monday.
var week = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// live plays batches up to a time and returns when an alarm began, looking every minute.
func live(r *rhythm, from, until time.Time, next func(time.Time) time.Time) (alarms []time.Time) {
	at := next(from)
	silent := false
	for now := from; now.Before(until); now = now.Add(time.Minute) {
		for !at.After(now) {
			r.batch(at)
			at = next(at)
		}
		if r.Last.IsZero() {
			continue
		}
		allowed := r.allowed(now)
		is := allowed > 0 && now.Sub(r.Last) > allowed
		if is && !silent {
			alarms = append(alarms, now)
		}
		silent = is
	}
	return alarms
}

// alarmAfter is how long after the last batch there is an alarm.
func alarmAfter(r *rhythm) time.Duration {
	for d := time.Duration(0); d < mostAllowed+time.Hour; d += time.Minute {
		if a := r.allowed(r.Last.Add(d)); a > 0 && d > a {
			return d
		}
	}
	return 0
}

// covers: pain 11, design section 8
func TestRhythm(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	every := func(d, jitter time.Duration) func(time.Time) time.Time {
		return func(at time.Time) time.Time { return at.Add(d + time.Duration(random.Int64N(int64(jitter)+1))) }
	}
	poisson := func(mean time.Duration) func(time.Time) time.Time {
		return func(at time.Time) time.Time {
			return at.Add(max(time.Second, time.Duration(random.ExpFloat64()*float64(mean))))
		}
	}
	// Office hours: Monday to Friday, from about 8 to about 18, a batch every five minutes.
	office := func(at time.Time) time.Time {
		at = at.Add(5*time.Minute + time.Duration(random.Int64N(int64(2*time.Minute))))
		for at.Weekday() == time.Saturday || at.Weekday() == time.Sunday || at.Hour() >= 18 || at.Hour() < 8 {
			at = at.Add(7*time.Minute + time.Duration(random.Int64N(int64(20*time.Minute))))
		}
		return at
	}
	tests := []struct {
		name string
		next func(time.Time) time.Time
		// alarms may come in the first eight days and in the three weeks after these.
		young, grown int
		usualMin     time.Duration
		usualMax     time.Duration
		// An outage that begins at the end of a Wednesday's noon is told after that.
		within time.Duration
	}{
		{"every ten minutes", every(10*time.Minute, time.Minute), 0, 0, 8 * time.Minute, 13 * time.Minute, 45 * time.Minute},
		{"every two seconds", every(2*time.Second, time.Second), 0, 0, time.Second, 4 * time.Second, 7 * time.Minute},
		{"at random, every twenty minutes", poisson(20 * time.Minute), 0, 1, 8 * time.Minute, 25 * time.Minute, 5 * time.Hour},
		{"at random, every six hours", poisson(6 * time.Hour), 0, 1, 2 * time.Hour, 8 * time.Hour, 5 * 24 * time.Hour},
		{"office hours", office, 3, 0, 4 * time.Minute, 9 * time.Minute, time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &rhythm{}
			young, grown := week.Add(8*24*time.Hour), week.Add(29*24*time.Hour)
			if a := live(r, week, young, tt.next); len(a) > tt.young {
				t.Errorf("%d false alarms in the first eight days: %v", len(a), a)
			}
			if a := live(r, young, grown, tt.next); len(a) > tt.grown {
				t.Errorf("%d false alarms in three weeks: %v", len(a), a)
			}
			noon := grown.Add(24*time.Hour + 12*time.Hour) // a Wednesday
			live(r, grown, noon, tt.next)
			if u := r.usual(); u < tt.usualMin || u > tt.usualMax {
				t.Errorf("the usual gap is %v, want %v to %v", u, tt.usualMin, tt.usualMax)
			}
			if after := alarmAfter(r); after == 0 || after > tt.within {
				t.Errorf("an outage is told after %v, want within %v", after, tt.within)
			}
		})
	}
}

func TestRhythmForgetsWhatWasLong(t *testing.T) {
	r := &rhythm{}
	at := week
	for range 2000 {
		at = at.Add(5 * time.Minute)
		r.batch(at)
	}
	at = at.Add(30 * time.Hour) // an outage
	r.batch(at)
	for at.Before(week.Add(60 * 24 * time.Hour)) {
		at = at.Add(5 * time.Minute)
		r.batch(at)
	}
	if a := alarmAfter(r); a == 0 || a > 2*time.Hour {
		t.Errorf("weeks after an outage an alarm takes %v", a)
	}
	// What comes after a year is no reason to walk through all its hours.
	r.batch(at.Add(365 * 24 * time.Hour))
	if r.Samples == 0 || r.Last.Before(at.Add(364*24*time.Hour)) {
		t.Error("a batch after a year was not taken")
	}
}

func TestRhythmKnowsNothingAtFirst(t *testing.T) {
	r := &rhythm{}
	for i := range minSamples {
		r.batch(week.Add(time.Duration(i) * time.Minute))
		if a := r.allowed(week.Add(24 * time.Hour)); a != 0 {
			t.Fatalf("after %d gaps silence of %v is allowed, want nothing to be known", r.Samples, a)
		}
	}
}

func FuzzRhythm(f *testing.F) {
	f.Add(int64(60), int64(3600), int64(-5))
	f.Add(int64(1), int64(1<<31), int64(7))
	f.Fuzz(func(t *testing.T, a, b, c int64) {
		r := &rhythm{}
		at := week
		for i := range 60 {
			at = at.Add(time.Duration([]int64{a, b, c}[i%3]%(1<<27)) * time.Second)
			r.batch(at)
			if allowed := r.allowed(at); allowed < 0 || allowed > mostAllowed || allowed > 0 && allowed < leastAllowed {
				t.Fatalf("allowed %v", allowed)
			}
		}
	})
}

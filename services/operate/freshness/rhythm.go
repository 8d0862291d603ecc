package freshness

import (
	"math"
	"time"
)

// What is learned of a source is in two parts: how long its gaps are, and how long it is
// usually silent at an hour of the week. The first holds for sources that come evenly or
// at random, the second for those that follow people: nothing at night, nothing on Sunday.
const (
	// minSamples is how many gaps must have been seen before there is an alarm, minGap
	// below which two batches are one.
	minSamples = 20
	minGap     = time.Second
	// leastAllowed is the shortest silence that is an alarm; leastNew is that of the
	// first day, when the nights are not known.
	leastAllowed = 5 * time.Minute
	leastNew     = time.Hour
	mostAllowed  = 8 * 24 * time.Hour

	// A gap is in the bucket of its logarithm: the limits of one are 1.25 apart, so a
	// quantile is right within a quarter. The last one begins above a week.
	buckets    = 62
	bucketBase = 1.25

	// Every day what was learned counts for less, unless there is little of it.
	decayDay   = 0.7
	keepWeight = 60

	hoursOfWeek = 7 * 24
	// fadeWeek is what is left of an hour's longest silence when the next week is shorter.
	fadeWeek = 0.75
)

// rhythm is what is known of when a source brings something. Its fields are exported for
// the state that is kept.
type rhythm struct {
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Gaps are decayed counts by bucket, Samples all gaps ever seen.
	Gaps    []float32 `json:"gaps,omitempty"`
	Samples int       `json:"samples"`
	Decayed time.Time `json:"decayed,omitzero"`
	// Hours has for each hour of the week, UTC, from Sunday on, the longest silence that
	// there was in it, as codeOf writes it; 0 is not known yet.
	Hours []byte `json:"hours,omitempty"`
	// At is the hour that is now, Longest the longest silence in it so far.
	At      time.Time     `json:"at,omitzero"`
	Longest time.Duration `json:"longest,omitempty"`
}

// batch notes that something was brought.
func (r *rhythm) batch(at time.Time) {
	if r.Last.IsZero() {
		r.First, r.Last, r.Decayed = at, at, at
		r.Gaps, r.Hours = make([]float32, buckets), make([]byte, hoursOfWeek)
		r.At = at.Truncate(time.Hour)
		return
	}
	gap := at.Sub(r.Last)
	if gap < minGap {
		return // also what is told late
	}
	r.pass(at)
	r.Gaps[bucketOf(gap)]++
	r.Samples++
	r.Last = at
	if at.Sub(r.Decayed) >= 24*time.Hour {
		r.Decayed = at
		total := float32(0)
		for _, n := range r.Gaps {
			total += n
		}
		if total > keepWeight {
			for i := range r.Gaps {
				r.Gaps[i] *= decayDay
			}
		}
	}
}

// pass notes for each hour up to at how long the source was silent in it.
func (r *rhythm) pass(at time.Time) {
	if at.Sub(r.At) > 2*hoursOfWeek*time.Hour {
		r.At = at.Add(-hoursOfWeek * time.Hour).Truncate(time.Hour) // longer than all that is known of weeks
		r.Longest = 0
	}
	for {
		end := r.At.Add(time.Hour)
		if at.Before(end) {
			r.Longest = max(r.Longest, at.Sub(r.Last))
			return
		}
		r.Longest = max(r.Longest, end.Sub(r.Last))
		h := hourOf(r.At)
		faded := time.Duration(float64(silenceOf(r.Hours[h])) * fadeWeek)
		r.Hours[h] = max(1, codeOf(max(r.Longest, faded)))
		r.At, r.Longest = end, 0
	}
}

// usual is the median gap, 0 when too little is known.
func (r *rhythm) usual() time.Duration { return r.quantile(0.5) }

func (r *rhythm) quantile(q float32) time.Duration {
	total := float32(0)
	for _, n := range r.Gaps {
		total += n
	}
	if r.Samples < minSamples || total == 0 {
		return 0
	}
	sum := float32(0)
	for i, n := range r.Gaps {
		if sum += n; sum >= q*total {
			return limitOf(i)
		}
	}
	return limitOf(buckets - 1)
}

// allowed is for how long the source may be silent at a time, 0 when that is not known.
func (r *rhythm) allowed(now time.Time) time.Duration {
	often := r.quantile(0.95)
	if often == 0 {
		return 0
	}
	least := leastAllowed
	longest, known := r.silenceAt(now)
	if !known {
		least = leastNew
	}
	return min(mostAllowed, max(least, 3*often, longest*3/2))
}

// silenceAt is the longest silence that is usual at an hour: of that hour of the week and
// the ones beside it; where they are not known yet, of that hour on other days.
func (r *rhythm) silenceAt(now time.Time) (longest time.Duration, known bool) {
	h := hourOf(now)
	at := func(h int) byte { return r.Hours[(h+hoursOfWeek)%hoursOfWeek] }
	if at(h) > 0 {
		return silenceOf(max(at(h-1), at(h), at(h+1))), true
	}
	var most byte
	for day := range 7 {
		d := h + 24*day
		if at(d) > 0 {
			most = max(most, at(d-1), at(d), at(d+1))
		}
	}
	return silenceOf(most), most > 0
}

func hourOf(t time.Time) int {
	t = t.UTC()
	return int(t.Weekday())*24 + t.Hour()
}

// bucketOf is the bucket of a gap, limitOf the longest gap of a bucket.
func bucketOf(gap time.Duration) int {
	n := int(math.Ceil(math.Log(gap.Seconds()) / math.Log(bucketBase)))
	return min(max(0, n), buckets-1)
}

func limitOf(bucket int) time.Duration {
	return time.Duration(math.Pow(bucketBase, float64(bucket)) * float64(time.Second)).Round(time.Second)
}

// codeOf writes a silence as one byte, silenceOf reads it: 1 is up to a second, each step
// above is 6 % more, so 255 is a month.
const codeBase = 1.06

func codeOf(d time.Duration) byte {
	if d <= time.Second {
		return 1
	}
	return byte(min(255, 1+math.Ceil(math.Log(d.Seconds())/math.Log(codeBase))))
}

func silenceOf(code byte) time.Duration {
	if code == 0 {
		return 0
	}
	return time.Duration(math.Pow(codeBase, float64(code-1)) * float64(time.Second))
}

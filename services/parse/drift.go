package parse

import (
	"bytes"
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/parse/formats"
)

// met is something new that records of an input have, and where the first of them is.
type met struct {
	formats.News

	records  uint64
	from, to uint32
}

// maxMet bounds what is told of one frame by name; the rest goes under the name others.
const maxMet = 64

// others is the name of news for which there is no room.
const others = "(others)"

// meet counts the news of the record at body[from:to].
func (in *input) meet(news []formats.News, from, to uint32) {
next:
	for _, n := range news {
		if len(in.news) >= maxMet-3 && !in.knows(n) { // room for the others of each kind
			n.Name = others
		}
		for i := range in.news {
			if in.news[i].News == n {
				in.news[i].records++
				continue next
			}
		}
		in.news = append(in.news, met{n, 1, from, to})
	}
}

func (in *input) knows(n formats.News) bool {
	for i := range in.news {
		if in.news[i].News == n {
			return true
		}
	}
	return false
}

// drift remembers of a feed what it has shown a sample of. The zero value is ready.
type drift struct {
	mu    sync.Mutex
	shown map[formats.News]time.Time
}

const (
	// maxSample bounds a sample, in bytes; sampleEvery is how often there is one of the
	// same thing, and maxShown of how many things a feed tells by name and by sample.
	maxSample   = 2 << 10
	sampleEvery = time.Hour
	maxShown    = 256
)

// tell makes the facts about the news of an input.
func (d *drift) tell(in *input) []*messages.Drift {
	now := time.Now()
	byName := map[formats.News]*messages.Drift{}
	var all []*messages.Drift
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shown == nil {
		d.shown = map[formats.News]time.Time{}
	}
	for _, m := range in.news {
		driftTotal.WithLabelValues(in.source, in.format, m.Kind).Add(float64(m.records))
		last, known := d.shown[m.News]
		if !known && len(d.shown) >= maxShown {
			m.Name = others
			last, known = d.shown[m.News]
		}
		f := byName[m.News]
		if f == nil {
			f = &messages.Drift{Kind: m.Kind, Name: m.Name, Format: in.format, Source: in.source}
			byName[m.News] = f
			all = append(all, f)
		}
		f.Records += m.records
		if !known || now.Sub(last) >= sampleEvery {
			d.shown[m.News] = now
			f.Sample = bytes.Clone(in.body[m.from:min(m.to, m.from+maxSample)])
		}
	}
	return all
}

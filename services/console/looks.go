package console

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/destinations"
	"github.com/penstock/penstock/services/operate/status"
)

// looks keeps for a moment what pages ask the processes and the books for, so that many
// who look cost no more than one.
type looks struct {
	destinations look[[]*destinations.Status]
	summary      look[books.Summary]
	sources      look[[]books.SourceBalance]
}

// look is one answer. What it holds is shared: nobody changes it.
type look[T any] struct {
	mu    sync.Mutex
	at    time.Time
	value T
	turn  chan struct{}
}

// get returns what was asked within a time, or asks; of several who come at once one
// asks, and the others wait for it. An error is not kept.
func (l *look[T]) get(ctx context.Context, within time.Duration, ask func(context.Context) (T, error)) (T, error) {
	for {
		l.mu.Lock()
		if !l.at.IsZero() && time.Since(l.at) < within {
			defer l.mu.Unlock()
			return l.value, nil
		}
		if l.turn == nil {
			break
		}
		turn := l.turn
		l.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			var none T
			return none, context.Cause(ctx)
		}
	}
	turn := make(chan struct{})
	l.turn = turn
	l.mu.Unlock()
	began := time.Now()
	value, err := ask(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turn == turn {
		l.turn = nil
		if err == nil {
			l.value, l.at = value, began
		}
	}
	close(turn)
	return value, err
}

// forget has the next one ask again: something was changed.
func (l *look[T]) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.turn = time.Time{}, nil
}

// books answers what the ledger says; nil while nobody keeps its books.
func (r *request) books() books.Reader {
	if r.c.deps.Books == nil {
		return nil
	}
	return r.c.deps.Books()
}

// summary is what the books say of all, as of a moment ago; false without books.
func (r *request) summary() (books.Summary, bool) {
	ledger := r.books()
	if ledger == nil {
		return books.Summary{}, false
	}
	s, err := r.c.looks.summary.get(r.Context(), booksFresh, ledger.Summary)
	return s, err == nil
}

// balances are what the books say of each source, by name, as of a moment ago; false
// without books.
func (r *request) balances() (map[string]books.SourceBalance, bool) {
	ledger := r.books()
	if ledger == nil {
		return nil, false
	}
	all, err := r.c.looks.sources.get(r.Context(), booksFresh, ledger.Sources)
	byName := make(map[string]books.SourceBalance, len(all))
	for _, s := range all {
		byName[s.Source] = s
	}
	return byName, err == nil
}

// booksFresh is how long an answer of the books is good for all who look.
const booksFresh = 3 * time.Second

// configured is what the configuration says of sources and destinations.
func (c *Console) configured() status.Configured {
	if c.deps.Configured == nil {
		return status.Configured{}
	}
	return c.deps.Configured()
}

// last is the last look at the pipeline, with nothing in it before the first.
func (c *Console) last() *sample {
	if s := c.latest(); s != nil {
		return s
	}
	return &sample{}
}

// destinationRates are events a second, by name, as last seen.
func (c *Console) destinationRates() map[string]float64 {
	rates := map[string]float64{}
	for _, d := range c.last().Destinations {
		rates[d.Name] = d.Rate
	}
	return rates
}

// sourceNames are those of all sources that are configured or were seen, for choosing
// one; at most mostNames.
func (c *Console) sourceNames() []string {
	const mostNames = 2000
	names := map[string]bool{}
	for name := range c.configured().Sources {
		names[name] = true
	}
	for _, s := range c.last().Sources {
		names[s.Source] = true
	}
	all := slices.Sorted(maps.Keys(names))
	return all[:min(len(all), mostNames)]
}

package deliver

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	eventsConfirmed = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_events_confirmed_total", Help: "Events that a destination has confirmed, of frames that are settled.",
	}, []string{"destination"})
	eventsReplayed = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_events_replayed_total", Help: "Events that a destination has confirmed which were sent to it once more: replays, and what was redriven or parsed again for it alone. They are not among those confirmed.",
	}, []string{"destination"})
	eventsFiltered = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_events_filtered_total", Help: "Events that the expression of a destination left out.",
	}, []string{"destination"})
	eventsSkipped = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_events_skipped_total", Help: "Events that a destination did not take before they were too old for its max_backlog.",
	}, []string{"destination"})
	eventsQuarantined = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_events_quarantined_total", Help: "Events that a destination refused, by code.",
	}, []string{"destination", "code"})
	conditionErrors = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_condition_errors_total", Help: "Events for which the expression of a destination could not be evaluated; they are delivered.",
	}, []string{"destination"})
	replacedBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_replaced_bytes_total", Help: "Bytes that are not UTF-8 and went out as U+FFFD.",
	}, []string{"destination"})
	batchesSent = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_batches_total", Help: "Attempts to deliver a batch, by verdict: done, retry, split, too_large, reject, stop.",
	}, []string{"destination", "verdict"})
	bytesSent = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_encoded_bytes_total", Help: "Bytes handed to the sink, attempts that failed included, before compression.",
	}, []string{"destination"})
	retries = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_retries_total", Help: "Attempts that will be repeated, by the code of their error.",
	}, []string{"destination", "code"})
	batchSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_deliver_batch_seconds", Help: "Time that a sink took for one attempt.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12),
	}, []string{"destination"})
	latencySeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "penstock_deliver_latency_seconds",
		Help:    "Time from the creation of an object or message to the confirmation of its events; one observation per origin and frame.",
		Buckets: []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 4 * 3600, 24 * 3600},
	}, []string{"destination"})
)

// destinations answers for the gauges, which are read when asked for.
var destinations = &gauges{all: map[*Deliver]struct{}{}}

func init() { prometheus.MustRegister(destinations) }

type gauges struct {
	mu    sync.Mutex
	all   map[*Deliver]struct{}
	count atomic.Int64 // of all
}

var (
	oldestDesc = prometheus.NewDesc("penstock_deliver_oldest_unconfirmed_seconds",
		"Age of the oldest frame in hand that is not confirmed, since the event log stored it; 0 when there is none.", []string{"destination"}, nil)
	inHandDesc = prometheus.NewDesc("penstock_deliver_in_hand_bytes",
		"Encoded bytes that wait to be confirmed.", []string{"destination"}, nil)
	inFlightDesc = prometheus.NewDesc("penstock_deliver_batches_in_flight",
		"Batches that are being sent or wait to be sent again.", []string{"destination"}, nil)
	concurrencyDesc = prometheus.NewDesc("penstock_deliver_concurrency",
		"Batches that may be sent at once: what the destination has shown to stand, up to the configured cap.", []string{"destination"}, nil)
	stateDesc = prometheus.NewDesc("penstock_deliver_breaker_state",
		"0: all goes through. 1: the destination fails and one batch at a time is tried. 2: somebody has to change something.", []string{"destination"}, nil)
)

// Count is how many destinations run in this process.
func Count() int { return int(destinations.count.Load()) }

func (g *gauges) add(d *Deliver) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all[d] = struct{}{}
	g.count.Store(int64(len(g.all)))
}

func (g *gauges) remove(d *Deliver) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, d)
	g.count.Store(int64(len(g.all)))
}

// Describe implements [prometheus.Collector].
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{oldestDesc, inHandDesc, inFlightDesc, concurrencyDesc, stateDesc} {
		ch <- d
	}
}

// reading is the state of one destination.
type reading struct {
	oldest           time.Duration
	inHand, inFlight int64
	concurrency      int
	state            health
}

// Collect implements [prometheus.Collector]. Two of one name are seen as one.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, byName := time.Now(), map[string]reading{}
	for d := range g.all {
		if d.lens.replay != "" {
			continue // what it has in hand is old, and its troubles concern no live event
		}
		r, sum := d.read(now), byName[d.cfg.Name]
		byName[d.cfg.Name] = reading{max(r.oldest, sum.oldest), r.inHand + sum.inHand, r.inFlight + sum.inFlight, r.concurrency + sum.concurrency, max(r.state, sum.state)}
	}
	for name, r := range byName {
		ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, r.oldest.Seconds(), name)
		ch <- prometheus.MustNewConstMetric(inHandDesc, prometheus.GaugeValue, float64(r.inHand), name)
		ch <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(r.inFlight), name)
		ch <- prometheus.MustNewConstMetric(concurrencyDesc, prometheus.GaugeValue, float64(r.concurrency), name)
		ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, float64(r.state), name)
	}
}

// read takes the state of d.
func (d *Deliver) read(now time.Time) reading {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := reading{inHand: d.inHand, inFlight: int64(len(d.running)), concurrency: d.pace.now(d.cfg.Concurrency), state: d.breaker.state}
	for f := range d.frames {
		r.oldest = max(r.oldest, now.Sub(f.stored))
	}
	return r
}

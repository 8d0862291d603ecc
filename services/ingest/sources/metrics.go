package sources

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	mReceived = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_messages_received_total", Help: "Messages received, redelivered ones included.",
	}, []string{"source"})
	mDeleted = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_messages_deleted_total", Help: "Messages deleted upstream, their content being stored.",
	}, []string{"source"})
	mReturned = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_messages_returned_total", Help: "Messages given back upstream without being stored.",
	}, []string{"source"})
	mRedelivered = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_messages_redelivered_total", Help: "Messages received again shortly after they were stored.",
	}, []string{"source"})
	mAnnounced = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_announced_total", Help: "What messages announced: object, events, test, ignored, quarantined.",
	}, []string{"source", "as"})
	mIgnored = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_ignored_total", Help: "Announcements that need no work, by reason.",
	}, []string{"source", "reason"})
	mReceiveTime = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_ingest_receive_seconds", Help: "Time of receive calls that brought messages, waiting included.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
	}, []string{"source"})
	mAge = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_ingest_queue_age_seconds", Help: "Age of messages when received: now minus the time they were sent.",
		Buckets: []float64{.1, .5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600, 4 * 24 * 3600, 14 * 24 * 3600},
	}, []string{"source"})
	mExtended = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_visibility_extensions_total", Help: "Visibility timeouts extended, by result: ok, lost, error.",
	}, []string{"source", "result"})
	mInFlight = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_ingest_messages_in_flight", Help: "Messages received and not settled yet.",
	}, []string{"source"})
	mInFlightBytes = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_ingest_in_flight_bytes", Help: "Bytes of the bodies of those messages.",
	}, []string{"source"})
	mReceivers = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_ingest_receivers", Help: "Receivers at work; more are added while batches come full.",
	}, []string{"source"})
	mUp = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_ingest_source_up", Help: "1 while the source can be read, else 0.",
	}, []string{"source"})
	mCallErrors = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_call_errors_total", Help: "Calls to the source that failed, by call and reason.",
	}, []string{"source", "call", "code"})
)

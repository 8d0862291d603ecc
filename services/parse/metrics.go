package parse

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	recordsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_parse_records_total", Help: "Raw records read, by source and format; repeated attempts count again.",
	}, []string{"source", "format"})
	eventsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_parse_events_total", Help: "Events made of records, by source and format; repeated attempts count again.",
	}, []string{"source", "format"})
	bytesTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_parse_read_bytes_total", Help: "Bytes of raw records, before compression, by source and format.",
	}, []string{"source", "format"})
	quarantinedTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_parse_quarantined_records_total", Help: "Records refused one by one, by source and code.",
	}, []string{"source", "code"})
	oddTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_parse_odd_records_total", Help: "Records that are events, but strange: without the id, time or type of their format, not UTF-8, of a newer version.",
	}, []string{"source", "format", "kind"})
	driftTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_parse_drift_records_total", Help: "Records with something that their format does not know, by kind: column, type, version. They are events all the same.",
	}, []string{"source", "format", "kind"})
	typesKnown = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_parse_event_types", Help: "Event types that documents have brought up so far; at the limit further ones become <base>.other.",
	})
	groupEvents = promauto.NewHistogram(prometheus.HistogramOpts{
		Name: "penstock_parse_group_events", Help: "Events in the frames that parse makes.",
		Buckets: []float64{1, 3, 10, 30, 100, 300, 1000},
	})
	groupBytes = promauto.NewHistogram(prometheus.HistogramOpts{
		Name: "penstock_parse_group_bytes", Help: "Bytes of documents in the frames that parse makes, before compression.",
		Buckets: prometheus.ExponentialBuckets(1<<10, 4, 8),
	})
	groupsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_parse_groups_total", Help: "Frames that parse makes, by why they were closed: full, window, memory, idle, linger, close.",
	}, []string{"why"})
	grouperBytes = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_parse_grouper_bytes", Help: "Bytes of records that wait to be grouped, and of frames on their way to the bus.",
	})
)

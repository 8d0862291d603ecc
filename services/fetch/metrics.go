package fetch

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	objectsDone = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_fetch_objects_total",
		Help: "Attempts to read an object, by result: complete, truncated, skipped, quarantined, retried, stopped.",
	}, []string{"source", "result"})
	storedBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_fetch_stored_bytes_total", Help: "Bytes read from S3, as they are stored.",
	}, []string{"source"})
	rawBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_fetch_raw_bytes_total", Help: "Bytes after decompression.",
	}, []string{"source"})
	recordsCut = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_fetch_records_total", Help: "Records cut out of objects and published; those of repeated attempts count again.",
	}, []string{"source"})
	resumed = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_fetch_resumes_total", Help: "Times that reading went on inside an object after the connection broke.",
	}, []string{"source"})
	objectSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_fetch_object_seconds", Help: "Time to read an object and publish its records, waiting for the bus included.",
		Buckets: prometheus.ExponentialBuckets(0.005, 3, 12),
	}, []string{"source"})
	inFlightBytes = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_fetch_in_flight_bytes", Help: "Bytes reserved for the buffers of objects that are being read.",
	})
)

package sources

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	mPages = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_list_pages_total", Help: "Pages of bucket listings that were answered.",
	}, []string{"source"})
	mListed = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_ingest_list_seconds", Help: "Time of whole listings of a prefix.",
		Buckets: []float64{.05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600},
	}, []string{"source"})
	mRemembered = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_ingest_list_remembered_objects", Help: "Objects of the look-back that are known to have been announced.",
	}, []string{"source", "prefix"})
)

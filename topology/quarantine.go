package topology

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
)

var quarantined = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "penstock_quarantined_records_total", Help: "Records put into quarantine, by stage, source and code; a thing without records counts 1.",
}, []string{"stage", "source", "code"})

// ProgramVersion is written into every quarantine entry. Main sets it at start.
var ProgramVersion = "devel"

// fillQuarantine fills in what the bus knows better than the stage. The id is
// derived from what the trouble is, so that meeting it twice makes one entry.
// What comes from quarantine and fails again is another entry: the bus would take it for
// the one that was deleted a moment ago, and drop it.
func fillQuarantine(ctx context.Context, stage Stage, redriven uint32, q *messages.Quarantine) {
	q.Version = 1
	q.Stage = string(stage)
	q.Attempts = max(1, q.Attempts) + redriven
	if q.Source == "" {
		q.Source = q.Origin.GetSource()
	}
	if q.Penstock == "" {
		q.Penstock = ProgramVersion
	}
	if q.Traceparent == "" {
		q.Traceparent = traceparent(ctx)
	}
	if q.Time == 0 {
		q.Time = time.Now().UnixNano()
	}
	if q.Id == "" {
		h := sha256.New()
		fmt.Fprintf(h, "%s|%s|%x|%d|%d|%s|%s|", stage, q.Code, q.Origin.GetPull(), q.Record, q.Offset, q.Destination, q.Subject)
		h.Write(q.Payload)
		if redriven > 0 {
			fmt.Fprintf(h, "|%d", redriven)
		}
		q.Id = hex.EncodeToString(h.Sum(nil)[:16])
	}
}

package formats

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/penstock/penstock/services/internal/document"
)

func init() {
	define("cwmetrics", "AWS CloudWatch metrics: data points of the API, or of metric streams as JSON.", shape{
		framing: anyJSON,
		sniff: func(_ string, head []byte) bool {
			return hasKeys(head, 5, "namespace", "metric", "dimensions", "stat", "period", "timestamp") ||
				hasKeys(head, 4, "metric_stream_name", "namespace", "metric_name", "dimensions", "timestamp")
		},
	}, func() CWMetricsConfig { return CWMetricsConfig{} }, openCWMetrics)
}

// CWMetricsConfig configures the format cwmetrics. It has no keys.
type CWMetricsConfig struct{}

// The event type of CloudWatch metrics. Source: features DEV-16.
const (
	cwMetricsBase  = "cloud.aws.cloudwatch"
	cwMetricsTable = cwMetricsBase + ".metrics"
)

// The slots of the values that are read from a data point.
const (
	cmNamespace = iota
	cmMetric
	cmMetricName
	cmDimensions
	cmStat
	cmPeriod
	cmUnit
	cmTime
	cmRevision
	cmAccount
	cmAccountID
	cmRegion
)

var cwMetricsPaths = [...][]string{
	cmNamespace:  {"namespace"},
	cmMetric:     {"metric"},
	cmMetricName: {"metric_name"},
	cmDimensions: {"dimensions"},
	cmStat:       {"stat"},
	cmPeriod:     {"period"},
	cmUnit:       {"unit"},
	cmTime:       {"timestamp"},
	cmRevision:   {"revision"},
	cmAccount:    {"account"},
	cmAccountID:  {"account_id"},
	cmRegion:     {"region"},
}

func openCWMetrics(_ CWMetricsConfig, _ Deps) (Format, error) {
	return Format{
		New:  func() Decoder { return &cwMetrics{objectReader: newObjectReader("data point", cwMetricsPaths[:]...)} },
		Base: cwMetricsBase, Table: cwMetricsTable,
	}, nil
}

// cwMetrics decodes data points of CloudWatch metrics. Their type is
// cloud.aws.cloudwatch.metrics.
//
//   - id: account, region, namespace, metric, dimensions in order (as they stand
//     where they are no object), statistic, period and time; with the revision that
//     the poller gives a value which has changed.
//     A point of a metric stream has all statistics in one, and its unit instead.
//   - time: timestamp, RFC 3339 or in milliseconds.
//   - account, region: of the point, else those that the source asked.
//
// Source: formats F-17; Amazon CloudWatch User Guide, metric streams JSON format.
type cwMetrics struct {
	objectReader

	// Where the source asked, for points that do not tell.
	askedAccount, askedRegion string
	asked                     []byte
	members                   []member
	series                    []byte
}

type member struct{ key, value []byte }

// maxDimensions is how many dimensions are put in order; CloudWatch allows 30.
const maxDimensions = 1000

// kindCWMetrics begins the ids of data points.
var kindCWMetrics = []byte("cwmetrics")

// Start implements Starter.
func (m *cwMetrics) Start(h Head) error {
	m.askedAccount, m.askedRegion = h.Origin.GetAccount(), h.Origin.GetRegion()
	return nil
}

// Decode implements Decoder.
func (m *cwMetrics) Decode(rec []byte, d *Doc) error {
	if err := m.object(rec, d); err != nil {
		return err
	}
	d.Type = cwMetricsTable
	if m.scan.found[cmTime].kind == number {
		m.epoch(rec, d, cmTime, digitsBelow[Milliseconds])
	} else {
		m.time(rec, d, cmTime)
	}
	if d.Account = m.account(rec, m.first(cmAccount, cmAccountID)); d.Account == "" {
		d.Account = m.askedAccount
	}
	if d.Region = m.region(rec, cmRegion); d.Region == "" {
		d.Region = m.askedRegion
	}
	metric := m.first(cmMetric, cmMetricName)
	if !m.has(cmNamespace) || !m.has(metric) || !d.HasTime {
		d.Odd |= NoID
		return nil
	}
	m.copies = m.copies[:0]
	m.asked = append(append(append(m.asked[:0], d.Account...), 0), d.Region...)
	m.series = m.appendDimensions(m.series[:0], rec)
	m.series = binary.BigEndian.AppendUint64(m.series, uint64(d.Time))
	unit := []byte(nil)
	if metric == cmMetricName {
		unit = m.keep(rec, cmUnit)
	}
	d.ID, d.HasID = newID(append(m.parts[:0], m.asked, m.keep(rec, cmNamespace), m.keep(rec, metric), m.series,
		m.keep(rec, cmStat), m.keep(rec, cmPeriod), m.keep(rec, cmRevision), unit)...), true
	return nil
}

// appendDimensions appends the kind of the ids and the dimensions in the order of
// their names, each value with its length so that no two lists are the same bytes.
func (m *cwMetrics) appendDimensions(dst, rec []byte) []byte {
	dst = append(dst, kindCWMetrics...)
	switch {
	case m.scan.found[cmDimensions].kind == absent:
		return dst
	case !m.begins(rec, cmDimensions, '{'): // of another writer, as they stand
		at := m.scan.found[cmDimensions].start
		if m.scan.found[cmDimensions].kind == text {
			at-- // with its quote
		}
		return append(dst, rec[at:at+skip(rec[at:])]...)
	}
	m.members = m.members[:0]
	for c := document.Members(rec[m.scan.found[cmDimensions].start:]); len(m.members) < maxDimensions; {
		key, start, end, ok := c.Next()
		if !ok {
			break
		}
		start += m.scan.found[cmDimensions].start
		end += m.scan.found[cmDimensions].start
		m.members = append(m.members, member{key, rec[start:end]})
	}
	slices.SortStableFunc(m.members, func(a, b member) int { return bytes.Compare(a.key, b.key) })
	for _, d := range m.members {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(d.key)))
		dst = append(dst, d.key...)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(d.value)))
		dst = append(dst, d.value...)
	}
	return dst
}

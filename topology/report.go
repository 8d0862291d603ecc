package topology

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

// reportBucket holds what jobs have found, in parts.
const reportBucket = "penstock_reports"

// Bounds of reports.
const (
	// ReportPart bounds a part of a report, in bytes.
	ReportPart = 64 << 10
	// ReportParts bounds how many parts a report has.
	ReportParts = 64
	// keepReports is how many jobs have theirs kept.
	keepReports = 6
)

var errStoreReport = fault.Define("bus.report_failed", fault.Retry,
	"check that the key-value bucket "+reportBucket+" exists and has room: penstock topology apply")

// SaveReport stores part n, from 0, of what a job has found, in the place of what was
// stored as that part before. Reports of the oldest jobs are forgotten.
func (b *Bus) SaveReport(ctx context.Context, job string, n int, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := b.bucket(ctx, reportBucket)
	if err != nil {
		return errStoreReport.New(err, "open the bucket %s", reportBucket)
	}
	if n == 0 {
		if err := b.forgetReports(ctx, kv, job); err != nil {
			return err
		}
	}
	if _, err := kv.Put(ctx, reportKey(job, n), data); err != nil {
		return errStoreReport.New(err, "store part %d of the report of job %s", n, job)
	}
	return nil
}

func reportKey(job string, n int) string { return keyOf(job) + fmt.Sprintf(".%04d", n) }

// Report returns the parts of what a job has found, in order; none is no error.
func (b *Bus) Report(ctx context.Context, job string) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := b.bucket(ctx, reportBucket)
	if err != nil {
		return nil, errStoreReport.New(err, "open the bucket %s", reportBucket)
	}
	var parts [][]byte
	for n := range ReportParts {
		e, err := kv.Get(ctx, reportKey(job, n))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			break
		}
		if err != nil {
			return nil, errStoreReport.New(err, "read part %d of the report of job %s", n, job)
		}
		parts = append(parts, e.Value())
	}
	return parts, nil
}

// forgetReports makes room for the report of a job.
func (b *Bus) forgetReports(ctx context.Context, kv jetstream.KeyValue, job string) error {
	keys, err := kv.ListKeys(ctx)
	if err != nil {
		return errStoreReport.New(err, "list the bucket %s", reportBucket)
	}
	parts := map[string]int{} // how many a report has
	for key := range keys.Keys() {
		if id, n, ok := strings.Cut(key, "."); ok {
			at, _ := strconv.Atoi(n)
			parts[id] = max(parts[id], at+1)
		}
	}
	if _, known := parts[keyOf(job)]; known || len(parts) < keepReports {
		return nil
	}
	all := make([]string, 0, len(parts))
	for id := range parts {
		all = append(all, id)
	}
	slices.Sort(all) // ids of jobs begin with the day; within one any will do
	for _, id := range all[:len(all)-keepReports+1] {
		for n := range parts[id] {
			if err := kv.Purge(ctx, id+fmt.Sprintf(".%04d", n)); err != nil {
				return errStoreReport.New(err, "forget the report of job %s", id)
			}
		}
	}
	return nil
}

package fetch

import (
	"cmp"
	"math"
	"slices"
	"sort"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

// mostLifted is the largest record once its limit is lifted: what the limits of the
// configuration may be raised to. Unit: bytes.
const mostLifted = 64 * config.MiB

// lifted is the configuration without the limits that the notice lifts, by the codes of
// their faults. What bounds the memory of the process is never lifted.
func (j *job) lifted(cfg Config) Config {
	for _, code := range j.in.Value.GetAllow() {
		switch code {
		case errBomb.Code:
			cfg.MaxRatio = math.MaxInt
		case errTooLarge.Code:
			cfg.MaxObject = math.MaxInt64
		case errTooManyBad.Code:
			cfg.MaxBadRecords = math.MaxInt
		case framing.ErrTooLarge.Code:
			cfg.MaxRecord, cfg.MaxLine = mostLifted, mostLifted
		}
	}
	return cfg
}

// pick takes over which parts of the object are wanted, once it is known which object
// that is: parts of another content say nothing about this one, so all of it is read.
// Dedupe drops what was there before.
func (j *job) pick() {
	if etag := j.in.Value.GetOrigin().GetEtag(); etag != "" && etag == j.origin.GetEtag() {
		j.parts = slices.SortedStableFunc(slices.Values(j.in.Value.GetParts()), func(a, b *messages.Part) int {
			return cmp.Compare(a.GetRecord(), b.GetRecord())
		})
		for i, p := range j.parts {
			if p.GetRecords() == 0 { // it reaches to the end, so the others are in it
				j.parts = j.parts[:i+1]
				break
			}
		}
	}
}

// pickFormat forgets the parts when the object was read as another format: its records
// were counted differently.
func (j *job) pickFormat() {
	for _, p := range j.parts {
		if p.GetFormat() != j.format {
			j.parts = nil
			return
		}
	}
}

// wants tells whether the record with an ordinal is wanted.
func (j *job) wants(ordinal uint64) bool {
	if len(j.parts) == 0 {
		return true
	}
	n := sort.Search(len(j.parts), func(i int) bool { return j.parts[i].GetRecord() > ordinal })
	if n == 0 {
		return false
	}
	p := j.parts[n-1]
	return p.GetRecords() == 0 || ordinal-p.GetRecord() < p.GetRecords()
}

// past tells whether nothing from an ordinal on is wanted. What follows is not read: whatever
// is wrong there was refused before, by who read all of the object.
func (j *job) past(ordinal uint64) bool {
	if len(j.parts) == 0 {
		return false
	}
	last := j.parts[len(j.parts)-1]
	return last.GetRecords() > 0 && ordinal >= last.GetRecord()+last.GetRecords()
}

// passesOver counts the next record without keeping it, when it is not wanted.
func (c *cutter) passesOver() bool {
	if c.job.wants(c.ordinal) {
		return false
	}
	c.ordinal++
	c.unwanted++
	if c.open {
		c.frame.Skip(1)
	}
	return true
}

package deliver

import (
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/transform"
)

var errMask = fault.Define("deliver.mask_failed", fault.Reject,
	"see what is wrong with the document; mend the format's decoder or change the mask of the destination, then redrive it")

// masks hide fields of documents from one destination. They may be used concurrently.
type masks []*transform.Masker

func newMasks(all []transform.Mask) masks {
	var m masks
	for _, one := range all {
		m = append(m, transform.NewMasker(one))
	}
	return m
}

// maskBuffers are what masking needs; reused, one document at a time.
type maskBuffers [2][]byte

// apply returns the document with its fields hidden, in one of the buffers or as it
// was; false when a mask does not understand it: it must not go on then.
func (m masks) apply(b *maskBuffers, doc []byte) ([]byte, bool) {
	next := 0
	for _, one := range m {
		buf := &b[next] // not the one that doc may be in
		if cap(*buf) > keepScratch {
			*buf = nil
		}
		out, changed, ok := one.Apply((*buf)[:0], doc)
		if *buf = out; !ok {
			return nil, false
		}
		if changed {
			doc, next = out, 1-next
		}
	}
	return doc, true
}

package deliver

import "testing"

// A scratch that waits for its next use holds no more than keepScratch in a buffer: a frame
// may have 64 MiB, and none may come after it.
func TestScratchesHoldLittle(t *testing.T) {
	for range cap(scratches) { // the others that wait
		select {
		case <-scratches:
		default:
		}
	}
	s := &scratch{body: make([]byte, keepScratch+1), fixed: make([]byte, keepScratch+1)}
	s.masked[0], s.masked[1] = make([]byte, keepScratch), make([]byte, keepScratch+1)
	giveScratch(s)
	if s = takeScratch(); cap(s.body) > keepScratch || cap(s.fixed) > keepScratch || cap(s.masked[1]) > keepScratch {
		t.Errorf("%d, %d and %d bytes wait", cap(s.body), cap(s.fixed), cap(s.masked[1]))
	}
	if cap(s.masked[0]) != keepScratch {
		t.Error("a small buffer is not kept")
	}
}

package gunzip

import (
	"bufio"
	"compress/flate"
	"encoding/binary"
	"io"
)

// inflater decompresses DEFLATE streams. Source: RFC 1951.
type inflater struct {
	src *bufio.Reader
	// in is what src has buffered, in[:at] of it is used up. The last n bits of that
	// are held back in hold, the next one lowest.
	in   []byte
	at   int
	hold uint64
	n    uint
	err  error // why there is nothing behind in

	state  state
	last   bool  // the block is the last one
	stored int   // bytes left of a stored block
	made   int64 // bytes that came out of the stream
	used   int64 // bytes that went in before in

	lits  *[litSize]uint32
	dists *[distSize]uint32

	litTable  [litSize]uint32
	distTable [distSize]uint32
	preTable  [preSize]uint32
	sizes     [litSymbols + distSymbols]uint8
}

// state is where in a stream the inflater stands.
type state uint8

const (
	atBlock  state = iota // before a block
	inStored              // in one that is not compressed
	inCodes               // in one that is
	atEnd                 // behind the last one
)

// begin prepares for a stream at which src stands.
func (f *inflater) begin(src *bufio.Reader) {
	f.src, f.in, f.at, f.hold, f.n, f.err = src, nil, 0, 0, 0, nil
	f.state, f.last, f.made, f.used = atBlock, false, 0, 0
}

// leave gives back to src what was not used.
func (f *inflater) leave() {
	f.settle()
	_, _ = f.src.Discard(f.at) // they are buffered
	f.used += int64(f.at)
	f.in, f.at = nil, 0
}

// settle gives whole bytes back to in.
func (f *inflater) settle() {
	f.at -= int(f.n >> 3)
	f.n &= 7
	f.hold &= 1<<f.n - 1
}

// more gets input behind in, at least one byte unless it sets err. What was held
// back is in it again.
func (f *inflater) more() {
	f.settle()
	rest := len(f.in) - f.at
	f.leave()
	_, f.err = f.src.Peek(rest + 1)
	if f.err == io.EOF {
		f.err = io.ErrUnexpectedEOF
	}
	f.in, _ = f.src.Peek(f.src.Buffered())
}

// need gets n bits into hold, at most 56.
func (f *inflater) need(n uint) error {
	for f.n < n {
		if f.at == len(f.in) {
			if f.err != nil {
				return f.err
			}
			f.more()
			continue
		}
		f.hold |= uint64(f.in[f.at]) << (f.n & 63)
		f.at++
		f.n += 8
	}
	return nil
}

// take uses up n bits of hold.
func (f *inflater) take(n uint) uint {
	v := uint(f.hold & (1<<n - 1))
	f.hold >>= n
	f.n -= n
	return v
}

func (f *inflater) corrupt() error { return flate.CorruptInputError(f.used + int64(f.at)) }

// inflate writes what follows in the stream to out[op:], and returns up to where.
// What came before is in out before op, as far back as History. It returns without
// an error when there is room for less than MinRoom, and io.EOF behind the stream.
func (f *inflater) inflate(out []byte, op int) (int, error) {
	var err error
	for err == nil && len(out)-op >= MinRoom {
		from := op
		switch f.state {
		case atBlock:
			err = f.block()
		case inStored:
			op, err = f.verbatim(out, op)
		case inCodes:
			lowest := int(max(0, int64(op)-f.made)) // of the stream in out
			if op, err = f.fast(out, op, lowest); err == nil && f.state == inCodes {
				op, err = f.careful(out, op, lowest)
			}
		case atEnd:
			err = io.EOF
		}
		f.made += int64(op - from)
	}
	return op, err
}

// ended goes on behind a block.
func (f *inflater) ended() {
	f.state = atBlock
	if f.last {
		f.state = atEnd
	}
}

// block reads the beginning of a block. Source: RFC 1951, 3.2.3 and 3.2.4.
func (f *inflater) block() error {
	if err := f.need(3); err != nil {
		return err
	}
	f.last = f.take(1) == 1
	switch f.take(2) {
	case 0:
		f.take(f.n & 7)
		if err := f.need(32); err != nil {
			return err
		}
		f.stored = int(f.take(16))
		if f.take(16) != uint(f.stored)^0xffff {
			return f.corrupt()
		}
		f.settle()
		f.state = inStored
		return nil
	case 1:
		f.lits, f.dists = &fixed.lits, &fixed.dists
		f.state = inCodes
		return nil
	case 2:
		return f.codes()
	}
	return f.corrupt()
}

// verbatim goes on in a stored block.
func (f *inflater) verbatim(out []byte, op int) (int, error) {
	if f.stored > 0 && f.at == len(f.in) {
		if f.more(); f.err != nil {
			return op, f.err
		}
	}
	n := copy(out[op:], f.in[f.at:min(len(f.in), f.at+f.stored)])
	f.at += n
	if f.stored -= n; f.stored == 0 {
		f.ended()
	}
	return op + n, nil
}

// order is in which order the sizes of the codes of sizes come.
var order = [preSymbols]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// codes reads the codes of a block. Source: RFC 1951, 3.2.7.
func (f *inflater) codes() error {
	if err := f.need(14); err != nil {
		return err
	}
	lits, dists, pres := int(f.take(5))+257, int(f.take(5))+1, int(f.take(4))+4
	if lits > litSymbols || dists > distSymbols {
		return f.corrupt()
	}
	sizes := f.sizes[:preSymbols]
	clear(sizes)
	for _, s := range order[:pres] {
		if err := f.need(3); err != nil {
			return err
		}
		sizes[s] = uint8(f.take(3))
	}
	if !build(f.preTable[:], preRoot, sizes, preMeaning[:]) {
		return f.corrupt()
	}
	sizes = f.sizes[:lits+dists]
	for i := 0; i < len(sizes); {
		size, times, err := f.size()
		if err != nil {
			return err
		}
		if size == sameSize {
			if i == 0 {
				return f.corrupt()
			}
			size = sizes[i-1]
		}
		if times > len(sizes)-i {
			return f.corrupt()
		}
		for range times {
			sizes[i] = size
			i++
		}
	}
	if !build(f.litTable[:], litRoot, sizes[:lits], litMeaning[:]) ||
		!build(f.distTable[:], distRoot, sizes[lits:], distMeaning[:]) {
		return f.corrupt()
	}
	pair((*[1 << litRoot]uint32)(f.litTable[:]))
	f.lits, f.dists = &f.litTable, &f.distTable
	f.state = inCodes
	return nil
}

// sameSize stands for the size before.
const sameSize = 16

// size reads the size of a code, and of how many of them.
func (f *inflater) size() (size uint8, times int, err error) {
	err = f.need(preRoot + 7) // less may do, at the end
	e := f.preTable[f.hold&(preSize-1)]
	n := uint(e & widthMask)
	extra := uint(0)
	symbol := uint8(e >> 16)
	size, times = symbol, 1
	switch symbol {
	case 16:
		extra, times = 2, 3
	case 17:
		size, extra, times = 0, 3, 3
	case 18:
		size, extra, times = 0, 7, 11
	}
	switch {
	case e&isBad != 0 && f.n > 0:
		return 0, 0, f.corrupt()
	case e&isBad != 0 || n+extra > f.n:
		return 0, 0, err
	}
	f.take(n)
	return size, times + int(f.take(extra)), nil
}

// fixed are the tables of the fixed codes. Source: RFC 1951, 3.2.6.
var fixed = makeFixed()

type tables struct {
	lits  [litSize]uint32
	dists [distSize]uint32
}

func makeFixed() *tables {
	t := &tables{}
	var sizes [fixedLits]uint8
	for i := range sizes {
		switch {
		case i >= 144 && i < 256:
			sizes[i] = 9
		case i >= 256 && i < 280:
			sizes[i] = 7
		default:
			sizes[i] = 8
		}
	}
	build(t.lits[:], litRoot, sizes[:], litMeaning[:])
	for i := range fixedDists {
		sizes[i] = 5
	}
	build(t.dists[:], distRoot, sizes[:fixedDists], distMeaning[:])
	return t
}

// What the fast loop keeps clear of: mostRead is how many bytes of input it may
// look at for one symbol and what it writes before, wordy how many it writes at once
// of a match, which is more than are wanted.
const (
	mostRead = 24
	wordy    = 40
)

// fast decodes as long as there are input and room enough for whatever comes.
//
// Every compressed byte that enters penstock passes this loop. So it calls nothing
// and has few branches that depend on the data.
func (f *inflater) fast(out []byte, op, lowest int) (int, error) {
	var (
		in, at  = f.in, f.at
		hold, n = f.hold, f.n
		lits    = f.lits
		dists   = f.dists
		bad     = false
	)
	lastAt, lastOp := len(in)-mostRead, len(out)-longestMatch-wordy
	for at <= lastAt && op <= lastOp {
		hold |= binary.LittleEndian.Uint64(in[at:]) << (n & 63)
		at += int((63 - n) >> 3)
		n |= 56 // 56 bits at least, of which a lookup without a link takes 10
		e := lits[hold&(1<<litRoot-1)]
		if e&isLiteral != 0 {
			binary.LittleEndian.PutUint16(out[op:], uint16(e>>16))
			op += int(e >> 6 & 3)
			hold >>= e & widthMask
			n -= uint(e & widthMask)
			e = lits[hold&(1<<litRoot-1)]
			if e&isLiteral != 0 {
				binary.LittleEndian.PutUint16(out[op:], uint16(e>>16))
				op += int(e >> 6 & 3)
				hold >>= e & widthMask
				n -= uint(e & widthMask)
				e = lits[hold&(1<<litRoot-1)]
				if e&isLiteral != 0 {
					binary.LittleEndian.PutUint16(out[op:], uint16(e>>16))
					op += int(e >> 6 & 3)
					hold >>= e & widthMask
					n -= uint(e & widthMask)
					continue
				}
			}
		}
		// 36 bits at least: a length takes 20.
		if e&(isLink|isEnd|isBad) != 0 {
			if e&isLink != 0 {
				hold >>= litRoot
				n -= litRoot
				e = lits[(e>>16+uint32(hold)&(1<<(e>>8&15)-1))%litSize]
				if e&isLiteral != 0 {
					out[op] = byte(e >> 16)
					op++
					hold >>= e & widthMask
					n -= uint(e & widthMask)
					continue
				}
			}
			if e&(isEnd|isBad) != 0 {
				hold >>= e & widthMask
				n -= uint(e & widthMask)
				bad = e&isBad != 0
				f.ended()
				break
			}
		}
		length := int(e>>16) + int(hold&(1<<(e&widthMask)-1)>>(e>>8&15))
		hold >>= e & widthMask
		n -= uint(e & widthMask)

		hold |= binary.LittleEndian.Uint64(in[at:]) << (n & 63)
		at += int((63 - n) >> 3)
		n |= 56
		e = dists[hold&(1<<distRoot-1)]
		if e&(isLink|isBad) != 0 {
			if e&isLink != 0 {
				hold >>= distRoot
				n -= distRoot
				e = dists[(e>>16+uint32(hold)&(1<<(e>>8&15)-1))%distSize]
			}
			if e&isBad != 0 {
				bad = true
				break
			}
		}
		dist := int(e>>16) + int(hold&(1<<(e&widthMask)-1)>>(e>>8&15))
		hold >>= e & widthMask
		n -= uint(e & widthMask)

		from := op - dist
		if from < lowest {
			bad = true
			break
		}
		if dist < 8 {
			repeat(out[from:op+length], dist)
			op += length
			continue
		}
		// Word by word, also where the words of a match are those just written.
		a, b := out[from:][:wordy], out[op:][:wordy]
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(a))
		binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(a[8:]))
		binary.LittleEndian.PutUint64(b[16:], binary.LittleEndian.Uint64(a[16:]))
		binary.LittleEndian.PutUint64(b[24:], binary.LittleEndian.Uint64(a[24:]))
		binary.LittleEndian.PutUint64(b[32:], binary.LittleEndian.Uint64(a[32:]))
		for k := wordy; k < length; k += 32 {
			a, b := out[from+k:][:32], out[op+k:][:32]
			binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(a))
			binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(a[8:]))
			binary.LittleEndian.PutUint64(b[16:], binary.LittleEndian.Uint64(a[16:]))
			binary.LittleEndian.PutUint64(b[24:], binary.LittleEndian.Uint64(a[24:]))
		}
		op += length
	}
	f.at, f.hold, f.n = at, hold&(1<<(n&63)-1), n
	if bad {
		return op, f.corrupt()
	}
	return op, nil
}

// repeat fills s with its first dist bytes.
func repeat(s []byte, dist int) {
	for i := dist; i < len(s); i++ {
		s[i] = s[i-dist]
	}
}

// careful decodes where the input or the room is too short for fast.
func (f *inflater) careful(out []byte, op, lowest int) (int, error) {
	for f.state == inCodes && len(out)-op >= longestMatch {
		missing := f.need(48) // as much as anything takes; less may do, at the end
		hold, n := f.hold, uint(0)
		e := f.lits[hold&(1<<litRoot-1)]
		if e&isLink != 0 {
			hold, n = hold>>litRoot, litRoot
			e = f.lits[(e>>16+uint32(hold)&(1<<(e>>8&15)-1))%litSize]
		}
		if e&isLiteral != 0 {
			count := int(e >> 6 & 3)
			if count > 1 && n+uint(e&widthMask) > f.n {
				count, e = 1, e&^widthMask|e>>8&15 // the first one may be there
			}
			if n += uint(e & widthMask); n > f.n {
				return op, missing
			}
			out[op], out[op+1] = byte(e>>16), byte(e>>24)
			op += count
			f.take(n)
			continue
		}
		n += uint(e & widthMask)
		switch {
		case e&isBad == 0 && n > f.n, f.n == 0:
			return op, missing
		case e&isBad != 0:
			return op, f.corrupt()
		case e&isEnd != 0:
			f.take(n)
			f.ended()
			return op, nil
		}
		length := int(e>>16) + int(hold&(1<<(e&widthMask)-1)>>(e>>8&15))
		hold = f.hold >> n
		left := f.n - n
		e = f.dists[hold&(1<<distRoot-1)]
		if e&isLink != 0 {
			hold >>= distRoot
			n += distRoot
			e = f.dists[(e>>16+uint32(hold)&(1<<(e>>8&15)-1))%distSize]
		}
		n += uint(e & widthMask)
		switch {
		case e&isBad == 0 && n > f.n, left == 0:
			return op, missing
		case e&isBad != 0:
			return op, f.corrupt()
		}
		from := op - (int(e>>16) + int(hold&(1<<(e&widthMask)-1)>>(e>>8&15)))
		if from < lowest {
			return op, f.corrupt()
		}
		f.take(n)
		repeat(out[from:op+length], op-from)
		op += length
		if len(f.in)-f.at >= mostRead && len(out)-op >= MinRoom {
			return op, nil // to fast
		}
	}
	return op, nil
}

package messages

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// DecodeOrigin decodes an origin, as [proto.Unmarshal] does, with two allocations instead
// of one for each field: every stage reads the origins of every frame. Its texts share
// their memory, and it shares none with b.
func DecodeOrigin(b []byte) (*Origin, error) {
	o := &struct {
		Origin
		pull [16]byte
	}{}
	all, at := "", 0
	for rest := b; len(rest) > 0; {
		f, more, err := nextField(rest)
		if err != nil {
			return nil, err
		}
		at += len(f.raw)
		rest = more
		var text *string
		switch int(f.num) {
		case 1:
			if f.typ == protowire.BytesType {
				o.Pull = append(o.pull[:0:len(o.pull)], f.val...)
				continue
			}
		case 2:
			text = &o.Source
		case 3:
			text = &o.Bucket
		case 4:
			text = &o.Key
		case 5:
			text = &o.Version
		case 6:
			text = &o.Etag
		case 7:
			text = &o.Queue
		case 8:
			text = &o.MessageId
		case 9, 10:
			if f.typ == protowire.VarintType {
				if f.num == 9 {
					o.Created = int64(f.n)
				} else {
					o.Received = int64(f.n)
				}
				continue
			}
		case 11:
			text = &o.Api
		case 12:
			text = &o.Resource
		case 13:
			text = &o.Account
		case 14:
			text = &o.Region
		}
		if text == nil || f.typ != protowire.BytesType || !utf8.Valid(f.val) {
			// Of a later version, or broken: let protobuf say.
			other := &Origin{}
			return other, proto.Unmarshal(b, other)
		}
		if all == "" {
			all = string(b)
		}
		*text = all[at-len(f.val) : at]
	}
	return &o.Origin, nil
}

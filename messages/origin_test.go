package messages

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func FuzzDecodeOrigin(f *testing.F) {
	full := &Origin{
		Pull: []byte("0123456789abcdef"), Source: "s", Bucket: "b", Key: "k/ä", Version: "v", Etag: "e", Queue: "q", MessageId: "m",
		Created: -1, Received: 1 << 40, Api: "a", Resource: "r", Account: "1", Region: "eu-west-1",
	}
	data, err := proto.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(data)
	f.Add(append(bytes.Clone(data), data...)) // the last holds
	f.Add(data[:len(data)-1])
	f.Add(protowire.AppendVarint(protowire.AppendTag(bytes.Clone(data), 2, protowire.VarintType), 7)) // of another type
	f.Add(protowire.AppendString(protowire.AppendTag(bytes.Clone(data), 99, protowire.BytesType), "later"))
	f.Add(protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), "\xff"))
	f.Add(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), make([]byte, 40)))
	f.Add(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		want := &Origin{}
		wantErr := proto.Unmarshal(data, want)
		got, err := DecodeOrigin(bytes.Clone(data))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, want %v", err, wantErr)
		}
		if err == nil && !proto.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestAllocationsOfOrigins(t *testing.T) {
	data, err := proto.Marshal(&Origin{Pull: make([]byte, 16), Source: "s", Bucket: "b", Key: "k", Etag: "e", Queue: "q", Received: 1, Account: "1", Region: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = DecodeOrigin(data) }); n > 2 {
		t.Errorf("%v allocations for an origin", n)
	}
}

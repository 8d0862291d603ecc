package formats

import (
	"bytes"
	"cmp"
	"strings"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
)

func init() {
	define("censornet", "Censornet log streaming rows of any product.", shape{
		framing: anyJSON,
		sniff: func(_ string, head []byte) bool {
			return hasKeys(head, 3, "utc_timestamp", "tz_offset", "final_action", "samaccountname", "icap_tx_uuid", "icap_agent")
		},
	}, func() CensornetConfig { return CensornetConfig{ProductField: "product"} }, openCensornet)
}

// CensornetConfig configures the format censornet.
type CensornetConfig struct {
	// Product whose rows the source brings: web, email, app, casb or mfa. It becomes
	// a part of the event type. Empty: ProductField tells, else what the webhook was
	// asked for, else it is unknown.
	Product string `yaml:"product"`
	// ProductField is the path of the product in rows that name their own.
	ProductField string `yaml:"product_field"`
}

const (
	censornetBase    = "censornet"
	censornetUnknown = "unknown"
	// censornetAPI begins the name of the call by which the webhook's rows come; what
	// it was asked for is the product.
	censornetAPI = "censornet"
)

// Validate reports every problem, each with the key to change.
func (c CensornetConfig) Validate() error {
	var p config.Problems
	p.Need(c.Product == string(appendWords(nil, []byte(strings.ReplaceAll(c.Product, ".", "_")), maxTypeSize)), "product",
		"use one word of a-z, 0-9, - and _, e.g. web, email, app, casb or mfa")
	p.Need(len(splitPath(c.ProductField)) <= maxSteps, "product_field", "use a path of at most 16 keys")
	return p.Err()
}

// The slots of the values that are read from a row.
const (
	cnID = iota
	cnTime
	cnAction
	cnProduct
)

func openCensornet(c CensornetConfig, deps Deps) (Format, error) {
	paths := [][]string{
		cnID:      {"icap_tx_uuid"},
		cnTime:    {"utc_timestamp"},
		cnAction:  {"final_action"},
		cnProduct: splitPath(c.ProductField),
	}
	return Format{
		New: func() Decoder {
			d := &censornet{
				objectReader: newObjectReader("Censornet row", paths...), types: newTypeNamer(deps.Types, censornetBase),
				configured: c.Product,
			}
			d.product = append(d.product, cmp.Or(c.Product, censornetUnknown)...)
			return d
		},
		Base: censornetBase,
	}, nil
}

// censornet decodes rows of Censornet log streaming. Fields change their JSON types
// between the generations of web rows; only those read here matter, and a wrong
// type counts as missing.
//
//   - id: icap_tx_uuid, which newer web rows have. Others are known by their
//     content, because rows come by several ways and the first answer of the
//     webhook repeats some.
//   - time: utc_timestamp, which has no zone and is UTC; without it the first key
//     with timestamp in its name.
//   - type: censornet.<product>.<final_action>, or without the action.
//
// Source: formats F-4; features CEN-8, CEN-12, CEN-20, CEN-36, CEN-37.
type censornet struct {
	objectReader

	types      *typeNamer
	configured string // the product, "" where the configuration has none
	product    []byte // of rows that name none
	word       []byte
	at         []byte
}

// kindCensornet begins the ids of rows, however they arrive.
var kindCensornet = []byte("censornet")

// Start implements Starter.
func (c *censornet) Start(h Head) error {
	product := c.configured
	if product == "" && strings.HasPrefix(h.Origin.GetApi(), censornetAPI) {
		product = h.Origin.GetResource()
	}
	c.product = appendFlat(c.product[:0], []byte(cmp.Or(product, censornetUnknown)))
	return nil
}

// Decode implements Decoder.
func (c *censornet) Decode(rec []byte, d *Doc) error {
	if err := c.object(rec, d); err != nil {
		return err
	}
	if c.scan.found[cnTime].kind == absent {
		c.otherTime(d)
	} else {
		c.when(d, c.scan.textAt(rec, cnTime))
	}
	if c.scan.found[cnID].kind == text {
		c.identify(rec, d, kindCensornet, cnID)
	}
	// Two rows with the same words in the same microsecond are one row twice.
	d.ByContent = !d.HasID && d.HasTime

	c.word = append(c.word[:0], c.product...)
	if own := c.scan.textAt(rec, cnProduct); c.configured == "" && len(own) > 0 {
		c.word = appendFlat(c.word[:0], own)
	}
	if action := c.scan.textAt(rec, cnAction); len(action) > 0 {
		c.word = appendFlat(append(c.word, '.'), action)
	}
	var odd Odd
	d.Type, odd = c.types.of(c.word)
	d.Odd |= odd
	return nil
}

// otherTime looks for a time in a row without utc_timestamp.
func (c *censornet) otherTime(d *Doc) {
	for m := document.Members(d.Body); ; {
		key, start, end, ok := m.Next()
		if !ok {
			d.Odd |= NoTime
			return
		}
		if v := d.Body[start:end]; bytes.Contains(key, []byte("timestamp")) && document.KindOf(v) == document.String {
			c.when(d, v[1:len(v)-1])
			return
		}
	}
}

// when reads a time, which is UTC where it has no zone.
func (c *censornet) when(d *Doc, v []byte) {
	if d.Time, d.HasTime = parseTime(v); d.HasTime {
		return
	}
	c.at = append(append(c.at[:0], v...), 'Z')
	if d.Time, d.HasTime = parseTime(c.at); !d.HasTime {
		d.Odd |= BadTime
	}
}

package formats

import (
	"bytes"

	"github.com/penstock/penstock/services/internal/document"
)

func init() {
	define("eventbridge", "AWS events as EventBridge sends them, of any service.", shape{
		framing: anyJSON,
		sniff: func(_ string, head []byte) bool {
			e := envelopeOf(head)
			return e.is && e.source != sourceGuardDuty && e.source != sourceSecurityHub
		},
	}, func() EventBridgeConfig { return EventBridgeConfig{} }, openEventBridge)
}

// EventBridgeConfig configures the format eventbridge. It has no keys.
type EventBridgeConfig struct{}

// The event types of EventBridge: without auto_event_type all are one.
const (
	eventBridgeBase  = "cloud.aws.cloudwatch"
	eventBridgeTable = eventBridgeBase + ".events"
)

// Sources whose events have formats of their own.
const (
	sourceGuardDuty   = "aws.guardduty"
	sourceSecurityHub = "aws.securityhub"
)

// The slots of the values that are read from an event.
const (
	ebID = iota
	ebDetailType
	ebSource
	ebAccount
	ebTime
	ebRegion
	ebTrailID
	ebFindingID
	ebFindingUpdated
	ebFindingAccount
	ebFindingRegion
	ebFindings
	ebFinding // and those of findingPaths
)

func openEventBridge(_ EventBridgeConfig, deps Deps) (Format, error) {
	paths := append([][]string{
		ebID:             {"id"},
		ebDetailType:     {"detail-type"},
		ebSource:         {"source"},
		ebAccount:        {"account"},
		ebTime:           {"time"},
		ebRegion:         {"region"},
		ebTrailID:        {"detail", "eventID"},
		ebFindingID:      {"detail", "id"},
		ebFindingUpdated: {"detail", "updatedAt"},
		ebFindingAccount: {"detail", "accountId"},
		ebFindingRegion:  {"detail", "region"},
		ebFindings:       {"detail", "findings"},
	}, findingPaths("detail", "findings", firstOf)...)
	return Format{
		New: func() Decoder {
			return &eventBridge{objectReader: newObjectReader("EventBridge event", paths...), types: newTypeNamer(deps.Types, eventBridgeBase)}
		},
		Base: eventBridgeBase, Table: eventBridgeTable,
	}, nil
}

// eventBridge decodes events of EventBridge.
//
//   - id: id, which EventBridge repeats when it sends again and for each rule that
//     sends to the queue. What other formats know as well has the same id as there:
//     CloudTrail records, findings of GuardDuty and of Security Hub.
//   - time: time; of a finding, when it was updated.
//   - type: cloud.aws.cloudwatch.<source without aws.>. The names of other
//     sources are kept whole, with _ for dots.
//   - account, region: those of the event; of a finding, its own.
//
// An input transformer of the rule may send anything. That has no id, no time and
// the type cloud.aws.cloudwatch.unknown.
//
// Source: formats F-7; features DEV-11, DEV-12.
type eventBridge struct {
	objectReader

	types *typeNamer
	word  []byte
}

// kindEventBridge begins the ids of events that nothing else knows.
var kindEventBridge = []byte("eventbridge")

// Decode implements Decoder.
func (e *eventBridge) Decode(rec []byte, d *Doc) error {
	if err := e.read(rec, d); err != nil {
		return err
	}
	var odd Odd
	d.Type, odd = e.types.of(e.service(rec))
	d.Odd |= odd
	d.Account, d.Region = e.account(rec, ebAccount), e.region(rec, ebRegion)
	switch {
	case e.is(rec, ebSource, sourceGuardDuty) && e.has(ebFindingID) && e.has(ebFindingUpdated):
		e.identify(rec, d, kindGuardDuty, ebFindingID, ebFindingUpdated)
		e.time(rec, d, e.first(ebFindingUpdated, ebTime))
		d.Account, d.Region = e.account(rec, e.first(ebFindingAccount, ebAccount)), e.region(rec, e.first(ebFindingRegion, ebRegion))
	case e.is(rec, ebSource, sourceSecurityHub) && onlyOne(rec, &e.scan.found[ebFindings]):
		e.finding(rec, d, ebFinding, e.action(rec, ebDetailType, ebID))
		e.otherwise(rec, d, ebTime)
	case e.has(ebTrailID) && bytes.HasSuffix(e.scan.textAt(rec, ebDetailType), []byte(" via CloudTrail")):
		e.identify(rec, d, kindCloudTrail, ebTrailID)
		e.time(rec, d, ebTime)
	default:
		e.identify(rec, d, kindEventBridge, ebID)
		e.time(rec, d, ebTime)
	}
	return nil
}

// service is the word of the event type. Partners' sources begin with aws. too,
// but that is no service.
func (e *eventBridge) service(rec []byte) []byte {
	source := e.scan.textAt(rec, ebSource)
	if !bytes.HasPrefix(source, []byte("aws.partner/")) {
		source = bytes.TrimPrefix(source, []byte("aws."))
	}
	e.word = appendFlat(e.word[:0], source)
	return e.word
}

// onlyOne tells whether f is an array of exactly one element.
func onlyOne(rec []byte, f *found) bool {
	if f.kind != other || rec[f.start] != '[' {
		return false
	}
	c := document.Members(rec[f.start:])
	if _, _, _, ok := c.Next(); !ok {
		return false
	}
	_, _, _, more := c.Next()
	return !more
}

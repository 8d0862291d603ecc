package formats

import (
	"bytes"

	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("cwlogs", "AWS CloudWatch Logs events: of the API, or in the envelopes of subscriptions.", shape{
		framing: func([]byte) framing.Framing { return framing.Framing{Kind: framing.Auto, Explode: "logEvents"} },
		sniff: func(_ string, head []byte) bool {
			return hasKeys(head, 3, "messageType", "logGroup", "logEvents", "logStream") ||
				hasKeys(head, 3, "eventId", "logStreamName", "ingestionTime", "message")
		},
		skip: skipControl,
	}, func() CWLogsConfig { return CWLogsConfig{} }, openCWLogs)
}

// CWLogsConfig configures the format cwlogs.
type CWLogsConfig struct {
	// MessageJSON adds the key message_json to events whose message is a JSON
	// object: that object, so that conditions and destinations see its fields. The
	// message itself stays.
	MessageJSON bool `yaml:"message_json"`
}

// The event type of CloudWatch Logs. Source: features DEV-18.
const (
	cwLogsBase  = "cloud.aws.cloudwatch"
	cwLogsTable = cwLogsBase + ".logs"
)

const skipCodeControl = "parse.cwlogs_control"

// wholeHead is from how many bytes on a head may be cut: less is all there is.
const wholeHead = 4 << 10

// skipControl finds what CloudWatch Logs sends to see whether a destination is
// there. Where other envelopes may follow, it stays: as an event, nothing is lost.
func skipControl(_ string, head []byte) string {
	control := false
	peek(head, func(key string, rest []byte) bool {
		control = key == "messageType" && bytes.HasPrefix(rest, []byte(`"CONTROL_MESSAGE"`))
		return !control
	})
	if !control || len(head) >= wholeHead {
		return ""
	}
	rest := trimSpace(head)
	end := 1 + skip(rest[1:])
	for end < len(rest) && rest[end] == ',' {
		end += 1 + skip(rest[end+1:])
	}
	if end >= len(rest) || len(trimSpace(rest[end+1:])) > 0 {
		return ""
	}
	return skipCodeControl
}

// The slots of the values that are read from an event.
const (
	clID = iota
	clTime
	clMessage
	clGroup
	clGroupName
	clGroupID
	clStream
	clStreamName
	clAccount
	clAccountID
	clOwner
	clRegion
	clEvents
	clFirstID
	clFirstTime
	clFirstMessage
)

var cwLogsPaths = [...][]string{
	clID:           {"eventId"},
	clTime:         {"timestamp"},
	clMessage:      {"message"},
	clGroup:        {"logGroup"},
	clGroupName:    {"logGroupName"},
	clGroupID:      {"logGroupIdentifier"},
	clStream:       {"logStream"},
	clStreamName:   {"logStreamName"},
	clAccount:      {"account"},
	clAccountID:    {"accountId"},
	clOwner:        {"owner"},
	clRegion:       {"region"},
	clEvents:       {"logEvents"},
	clFirstID:      {"logEvents", firstOf, "id"},
	clFirstTime:    {"logEvents", firstOf, "timestamp"},
	clFirstMessage: {"logEvents", firstOf, "message"},
}

func openCWLogs(c CWLogsConfig, _ Deps) (Format, error) {
	f := Format{
		New: func() Decoder {
			l := &cwLogs{objectReader: newObjectReader("CloudWatch Logs event", cwLogsPaths[:]...)}
			if c.MessageJSON {
				l.inner = newScanner()
			}
			return l
		},
		Base: cwLogsBase, Table: cwLogsTable,
	}
	if c.MessageJSON {
		f.Grows = 1
	}
	return f, nil
}

// cwLogs decodes events of CloudWatch Logs, and envelopes of subscriptions with one
// event each. Their type is cloud.aws.cloudwatch.logs.
//
//   - id: eventId (in an envelope: id) with log group and log stream, so that it is
//     the same by both ways. Without it, and with several events, there is none.
//   - time: timestamp, in milliseconds.
//   - account: owner, or account; else that of the log group's ARN.
//   - region: region, else that of the ARN.
//
// Source: formats F-16; Amazon CloudWatch Logs API Reference, FilteredLogEvent; User
// Guide, real-time processing of log data with subscriptions.
type cwLogs struct {
	objectReader

	inner *scanner // of messages, nil when they are not looked at
	made  []byte
}

// kindCWLogs begins the ids of events, however they arrive.
var kindCWLogs = []byte("cwlogs")

// Decode implements Decoder.
func (l *cwLogs) Decode(rec []byte, d *Doc) error {
	if err := l.object(rec, d); err != nil {
		return err
	}
	d.Type = cwLogsTable
	id, at, message := clID, clTime, clMessage
	envelope := l.begins(rec, clEvents, '[')
	if envelope {
		id, at, message = clFirstID, clFirstTime, clFirstMessage
	}
	if !envelope || onlyOne(rec, &l.scan.found[clEvents]) {
		l.identifyEvent(rec, d, id)
	} else {
		d.Odd |= NoID
	}
	l.epoch(rec, d, at, digitsBelow[Milliseconds])
	d.Account, d.Region = l.account(rec, l.first(clOwner, clAccount, clAccountID)), l.region(rec, clRegion)
	for _, slot := range [...]int{clGroupID, clGroup, clGroupName} {
		l.arn(rec, d, slot)
	}
	if l.inner != nil {
		l.lift(rec, d, message)
	}
	return nil
}

// identifyEvent makes the id of the event whose own stands at slot.
func (l *cwLogs) identifyEvent(rec []byte, d *Doc, slot int) {
	l.copies = l.copies[:0]
	id := l.keep(rec, slot)
	if len(id) == 0 {
		d.Odd |= NoID
		return
	}
	group := groupName(l.keep(rec, l.first(clGroup, clGroupName, clGroupID)))
	stream := l.keep(rec, l.first(clStream, clStreamName))
	d.ID, d.HasID = newID(append(l.parts[:0], kindCWLogs, group, stream, id)...), true
}

// groupName is the name of a log group that may be given as an ARN.
func groupName(group []byte) []byte {
	if bytes.HasPrefix(group, []byte("arn:")) {
		if _, name, ok := bytes.Cut(group, []byte(":log-group:")); ok {
			return bytes.TrimSuffix(name, []byte(":*"))
		}
	}
	return group
}

// lift adds message_json, where the message is an object.
func (l *cwLogs) lift(rec []byte, d *Doc, slot int) {
	message := l.scan.textAt(rec, slot)
	if len(message) < 2 || len(d.Body) < 2 {
		return
	}
	start, end, why, _ := l.inner.scan(message)
	if why != "" || message[start] != '{' {
		return
	}
	l.made = append(append(l.made[:0], d.Body[:len(d.Body)-1]...), `,"message_json":`...)
	l.made = append(append(l.made, message[start:end]...), '}')
	d.Body, d.Offset, d.Made = l.made, 0, true
}

package ocsf

import (
	"bytes"
	"strconv"
)

func init() {
	define(mapping{
		formats: []string{"vpcflow"}, product: "Amazon VPC", profiles: []string{"cloud", "security_control"},
		fields: []field{
			{to: "metadata.product.version", from: "version"},
			{to: "cloud.region", from: "region"},
			{to: "cloud.zone", from: "az-id"},
			{to: "connection_info.protocol_num", from: "protocol", as: integer},
			{to: "connection_info.protocol_ver", from: "type"},
			{to: "connection_info.tcp_flags", from: "tcp-flags", as: integer},
			{to: "src_endpoint.port", from: "srcport", as: port},
			{to: "src_endpoint.svc_name", from: "pkt-src-aws-service"},
			{to: "dst_endpoint.port", from: "dstport", as: port},
			{to: "dst_endpoint.svc_name", from: "pkt-dst-aws-service"},
			{to: "traffic.bytes", from: "bytes", as: integer},
			{to: "traffic.packets", from: "packets", as: integer},
			{to: "start_time", from: "start", as: seconds},
			{to: "end_time", from: "end", as: seconds},
			{to: "status_code", from: "log-status"},
			{to: "status_detail", from: "reject-reason"},
			{to: "raw_data", from: "raw"},
			{from: "account-id", as: taking}, // the event has it, where it is one
			{from: "action", as: taking},
			{from: "flow-direction", as: taking},
			{from: "traffic-path", as: looking},
			{from: "srcaddr", as: taking},
			{from: "dstaddr", as: taking},
			{from: "pkt-srcaddr", as: taking},
			{from: "pkt-dstaddr", as: taking},
			{from: "interface-id", as: taking},
			{from: "instance-id", as: taking},
			{from: "subnet-id", as: taking},
			{from: "vpc-id", as: taking},
		},
		sets: []string{
			"action", "action_id", "disposition", "disposition_id",
			"connection_info.boundary", "connection_info.boundary_id", "connection_info.direction", "connection_info.direction_id", "connection_info.protocol_name", "connection_info.protocol_ver_id",
			"dst_endpoint.instance_uid", "dst_endpoint.interface_uid", "dst_endpoint.intermediate_ips", "dst_endpoint.ip", "dst_endpoint.subnet_uid", "dst_endpoint.vpc_uid",
			"src_endpoint.instance_uid", "src_endpoint.interface_uid", "src_endpoint.intermediate_ips", "src_endpoint.ip", "src_endpoint.subnet_uid", "src_endpoint.vpc_uid",
			"metadata.product.feature.name",
		},
		finish: finishFlow,
	})
}

// boundaries are the captions of connection_info.boundary_id, from 4 on: what the
// field traffic-path counts from 1 on.
var boundaries = []string{"Same VPC", "Internet/VPC Gateway", "Virtual Private Gateway", "Intra-region VPC", "Inter-region VPC", "Local Gateway", "Gateway VPC", "Internet Gateway"}

// protocols are the common ones of the Internet Protocol. Source: IANA.
var protocols = map[string]string{"1": "icmp", "6": "tcp", "17": "udp", "47": "gre", "50": "esp", "58": "ipv6-icmp", "132": "sctp"}

// finishFlow makes Network Activity. The interface belongs to one of the endpoints,
// which only flow-direction tells; without it, it stays in unmapped. Where no traffic
// was seen (NODATA, SKIPDATA) there is nothing but the interface, which then stands as
// the destination.
//
// Source: Amazon VPC User Guide, flow log records.
func finishFlow(r *record) {
	r.setText("metadata.product.feature.name", "Flowlogs")
	r.as(networkActivity, 0)
	if r.text("account-id") != r.event.Account {
		r.keep("account-id")
	}
	switch r.text("action") {
	case "ACCEPT":
		r.activity = 6
		setAction(r, 1, "Allowed", 1, "Allowed")
	case "REJECT":
		r.activity = 5
		setAction(r, 2, "Denied", 2, "Blocked")
	default:
		r.keep("action")
	}
	here := ""
	switch r.text("flow-direction") {
	case "ingress":
		r.setCaption("connection_info.direction_id", "connection_info.direction", 1, "Inbound")
		here = "dst_endpoint."
	case "egress":
		r.setCaption("connection_info.direction_id", "connection_info.direction", 2, "Outbound")
		here = "src_endpoint."
	default:
		r.setCaption("connection_info.direction_id", "connection_info.direction", 0, "Unknown")
		r.keep("flow-direction")
	}
	if n, err := strconv.Atoi(r.text("traffic-path")); err == nil && n >= 1 && n <= len(boundaries) {
		r.setCaption("connection_info.boundary_id", "connection_info.boundary", n+3, boundaries[n-1])
	}
	if name := protocols[r.text("protocol")]; name != "" {
		r.setText("connection_info.protocol_name", name)
	}
	switch r.text("type") {
	case "IPv4":
		r.setInt("connection_info.protocol_ver_id", 4)
	case "IPv6":
		r.setInt("connection_info.protocol_ver_id", 6)
	case "":
	default:
		r.setInt("connection_info.protocol_ver_id", other)
	}
	r.setAddress("src_endpoint.", "srcaddr", "pkt-srcaddr")
	r.setAddress("dst_endpoint.", "dstaddr", "pkt-dstaddr")
	if here == "" && !r.has("src_endpoint.ip") && !r.has("dst_endpoint.ip") {
		here = "dst_endpoint."
	}
	for _, f := range [...][2]string{{"interface-id", "interface_uid"}, {"instance-id", "instance_uid"}, {"subnet-id", "subnet_uid"}, {"vpc-id", "vpc_uid"}} {
		if v := r.text(f[0]); v == "" || here == "" {
			r.keep(f[0])
		} else {
			r.setText(here+f[1], v)
		}
	}
	if r.text("log-status") == "OK" {
		r.setCaption("status_id", "status", 1, "Success")
	}
}

// setAddress sets the address of an endpoint, of two fields. That in the packets is the
// endpoint's own; another one is between.
func (r *record) setAddress(endpoint, from, fromPacket string) {
	addr, inPacket := r.convert(r.get(from), address), r.convert(r.get(fromPacket), address)
	if addr == nil {
		r.keep(from)
	}
	if inPacket == nil {
		r.keep(fromPacket)
		inPacket = addr
	}
	r.set(endpoint+"ip", inPacket)
	if addr != nil && !bytes.Equal(addr, inPacket) {
		start := len(r.buf)
		r.buf = append(append(append(r.buf, '['), addr...), ']')
		r.set(endpoint+"intermediate_ips", r.buf[start:])
	}
}

// setAction sets what a control did.
func setAction(r *record, id int, action string, disposition int, caption string) {
	r.setCaption("action_id", "action", id, action)
	r.setCaption("disposition_id", "disposition", disposition, caption)
}

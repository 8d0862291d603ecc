package ocsf

import (
	"net/netip"
	"strings"
)

func init() {
	define(mapping{
		formats: []string{"cloudtrail"}, product: "CloudTrail", profiles: []string{"cloud"},
		fields: append(trailFields(), field{to: "resources", from: "resources", each: trailResources, need: []string{"name", "uid"}}),
		sets:   []string{"src_endpoint.domain", "src_endpoint.ip", "src_endpoint.svc_name"},
		finish: finishTrail,
	})
}

// authenticates is the table of records about authentication, whose class has no
// resources.
var authenticates = define(mapping{
	product: "CloudTrail", profiles: []string{"cloud"},
	fields: append(trailFields(),
		field{to: "dst_endpoint.svc_name", from: "additionalEventData.LoginTo"},
		field{from: "additionalEventData.MFAUsed", as: taking},
		field{to: "session.credential_uid", from: "responseElements.credentials.accessKeyId"},
		field{to: "session.uid", from: "responseElements.assumedRoleUser.arn"},
		field{to: "session.uid_alt", from: "responseElements.assumedRoleUser.assumedRoleId"},
		field{from: "requestParameters.roleArn", as: looking},
		field{from: "requestParameters.roleSessionName", as: looking},
		field{from: "responseElements.ConsoleLogin", as: looking},
	),
	sets:   []string{"is_mfa", "service.name", "src_endpoint.domain", "src_endpoint.ip", "src_endpoint.svc_name", "user.account.uid", "user.name", "user.uid", "user.uid_alt"},
	finish: finishAuthentication,
})

var trailResources = []field{
	{to: "uid", from: "ARN"}, {to: "name", from: "ARNPrefix"}, {to: "type", from: "type"}, {to: "owner.account.uid", from: "accountId"},
}

// trailFields are the fields of CloudTrail records. They are API Activity, and
// Authentication where somebody signs in or takes a role. Insights, which name no
// caller, become Base Events.
//
// Source: AWS CloudTrail User Guide, record contents.
func trailFields() []field {
	return []field{
		{to: "actor.idp.name", from: "userIdentity.identityProvider"},
		{to: "actor.idp.name", from: "userIdentity.sessionContext.webIdFederationData.federatedProvider"},
		{to: "actor.idp.uid", from: "userIdentity.onBehalfOf.identityStoreArn"},
		{to: "actor.invoked_by", from: "userIdentity.invokedBy"},
		{to: "actor.session.created_time", from: "userIdentity.sessionContext.attributes.creationDate", as: instant},
		{to: "actor.session.is_mfa", from: "userIdentity.sessionContext.attributes.mfaAuthenticated", as: boolean},
		{to: "actor.session.issuer", from: "userIdentity.sessionContext.sessionIssuer.arn"},
		{to: "actor.user.account.uid", from: "userIdentity.accountId"},
		{to: "actor.user.credential_uid", from: "userIdentity.accessKeyId"},
		{to: "actor.user.credential_uid", from: "userIdentity.credentialId"},
		{to: "actor.user.name", from: "userIdentity.userName"},
		{to: "actor.user.name", from: "additionalEventData.UserName"},
		{to: "actor.user.type", from: "userIdentity.type"},
		{to: "actor.user.uid", from: "userIdentity.arn"},
		{to: "actor.user.uid_alt", from: "userIdentity.principalId"},
		{to: "actor.user.uid_alt", from: "userIdentity.onBehalfOf.userId"},
		{to: "api.operation", from: "eventName"},
		{to: "api.request.data", from: "requestParameters", as: anything},
		{to: "api.request.uid", from: "requestID"},
		{to: "api.response.data", from: "responseElements", as: anything},
		{to: "api.response.error", from: "errorCode"},
		{to: "api.response.message", from: "errorMessage"},
		{to: "api.service.name", from: "eventSource"},
		{to: "api.version", from: "apiVersion"},
		{to: "cloud.account.uid", from: "recipientAccountId"},
		{to: "cloud.region", from: "awsRegion"},
		{to: "http_request.user_agent", from: "userAgent"},
		{to: "metadata.event_code", from: "eventType"},
		{to: "metadata.original_time", from: "eventTime"},
		{to: "metadata.product.feature.name", from: "eventCategory"},
		{to: "metadata.product.version", from: "eventVersion"},
		{to: "src_endpoint.uid", from: "vpcEndpointId"},
		{from: "sourceIPAddress", as: taking},
		{from: "readOnly", as: looking},
	}
}

func finishTrail(r *record) {
	if signIn(r.text("eventSource"), r.text("eventName")) != 0 {
		r.instead = authenticates
		return
	}
	r.as(apiActivity, apiOf(r.text("eventName"), r.text("readOnly")))
	r.activityName = r.text("eventName")
	finishCall(r, r.text("errorCode") == "" && r.text("errorMessage") == "")
}

// finishCall sets what all records have.
func finishCall(r *record, success bool) {
	if from := r.text("sourceIPAddress"); from != "" {
		if _, err := netip.ParseAddr(from); err == nil {
			r.setText("src_endpoint.ip", from)
		} else {
			r.setText("src_endpoint.domain", from)
			r.setText("src_endpoint.svc_name", from)
		}
	}
	setStatus(r, success)
}

func setStatus(r *record, success bool) {
	if success {
		r.setCaption("status_id", "status", 1, "Success")
	} else {
		r.setCaption("status_id", "status", 2, "Failure")
	}
}

// verbs are the first words of calls, by activity.
var verbs = func() map[string]int {
	all := map[string]int{}
	for id, words := range map[int]string{
		1: "Create Add Allocate Generate Import Issue Launch Publish Register Run Upload Copy Clone Invite Provision",
		2: "Get Describe List Head Lookup Search Select Scan Query Batch Read View Check Validate Verify Test Preview Download Export Estimate Simulate Filter Discover",
		3: "Update Modify Put Set Change Attach Detach Associate Disassociate Enable Disable Start Stop Reboot Reset Restore Tag Untag Rotate Replace Apply Authorize Revoke Move Upgrade Edit Configure Activate Deactivate Assign Unassign Suspend Resume Renew Accept Reject Promote Rename Merge Patch",
		4: "Delete Remove Terminate Deregister Release Destroy Purge Cancel Abort Erase",
	} {
		for _, word := range strings.Fields(words) {
			all[word] = id
		}
	}
	return all
}()

// apiOf returns the activity of a call, by the first word of its name. What
// CloudTrail calls read-only is a read.
func apiOf(name, readOnly string) int {
	end := len(name)
	for i := 1; i < len(name); i++ {
		if 'A' <= name[i] && name[i] <= 'Z' {
			end = i
			break
		}
	}
	switch id := verbs[name[:end]]; {
	case readOnly == "true":
		return 2
	case id == 2 && name[:end] == "Batch":
		return apiOf(name[end:], readOnly) // BatchDeleteImage
	case id != 0:
		return id
	case name == "":
		return 0
	}
	return other
}

// signIn returns the activity of a record about authentication, 0 for all others.
func signIn(service, name string) int {
	switch service {
	case "signin.amazonaws.com", "sso.amazonaws.com":
		switch name {
		case "ConsoleLogin", "UserAuthentication", "Authenticate", "SwitchRole", "RenewRole", "Federate", "SAMLLogin":
			return 1
		case "Logout", "ExitRole":
			return 2
		case "CredentialChallenge", "CredentialVerification", "CheckMfa":
			return other
		}
	case "sts.amazonaws.com":
		switch name {
		case "AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "AssumeRoot", "GetSessionToken", "GetFederationToken":
			return 1
		}
	}
	return 0
}

func finishAuthentication(r *record) {
	name := r.text("eventName")
	r.as(authentication, signIn(r.text("eventSource"), name))
	r.activityName = name
	r.setText("service.name", r.text("eventSource"))
	if role := r.text("requestParameters.roleArn"); role != "" {
		r.setText("user.uid", role)
		if session := r.text("requestParameters.roleSessionName"); session != "" {
			r.setText("user.name", session)
		}
	} else { // who signs in is who acts
		for _, path := range []string{"account.uid", "name", "uid", "uid_alt"} {
			if slot := r.slot("actor.user." + path); r.out[slot] != nil {
				r.set("user."+path, r.out[slot])
			}
		}
	}
	switch r.text("additionalEventData.MFAUsed") {
	case "Yes":
		r.set("is_mfa", []byte("true"))
	case "No":
		r.set("is_mfa", []byte("false"))
	}
	success := r.text("errorCode") == "" && r.text("errorMessage") == ""
	if login := r.text("responseElements.ConsoleLogin"); login != "" {
		success = login == "Success"
	}
	finishCall(r, success)
}

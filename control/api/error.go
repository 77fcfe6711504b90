package api

import "fmt"

// The codes of errors.
const (
	CodeBadRequest     = "bad_request"         // 400: the message names the field
	CodeUnauthorized   = "unauthorized"        // 401: no token
	CodeForbidden      = "forbidden"           // 403: another token
	CodeNotFound       = "not_found"           // 404: no such attachment, project, environment or path
	CodeMethod         = "method_not_allowed"  // 405
	CodeConflict       = "conflict"            // 409: ID or address belongs to another sandbox
	CodeNoNetwork      = "no_active_network"   // 409: the environment has no active network in the region
	CodeNoPassive      = "no_passive_network"  // 409: the environment has no passive network in the region
	CodeTooLarge       = "too_large"           // 413
	CodeWrongRegion    = "wrong_region"        // 421: another region's control plane serves it
	CodeInternal       = "internal"            // 500
	CodeExhausted      = "addresses_exhausted" // 503: the network's CIDR, or the room for attachments, is full
	CodeStopping       = "stopping"            // 503: the control plane is being stopped
	CodeGatewayPending = "gateway_not_ready"   // 503: the gateway did not confirm in time
)

// Error is an error of the API as it goes over the wire, with its HTTP status.
type Error struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Message, e.Code) }

// ErrorBody is the body of an answer that is an error.
type ErrorBody struct {
	Error *Error `json:"error"`
}

// Package tcp is the harness's own TCP. Sandboxes of bench/traffic speak it: very many short
// connections ([Connections]), whose far side may be an [Answerer] on a TUN, and bulk
// ([Bulk]), which a network stack in this process carries.
package tcp

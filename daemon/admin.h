/* The operators' side of a running server: where experts are, and orders to move them. On listeners
 * of its own, so that whoever may ask for text may not also empty the memory. Private to daemon/.
 */
#ifndef SWITCHYARD_DAEMON_ADMIN_H
#define SWITCHYARD_DAEMON_ADMIN_H

#include "daemon/server.h"

struct admin;

/* Answers at the UNIX socket `admin.sock` in the store, which only the server's user may open, and
 * on server.admin_port of 127.0.0.1 if that is set. A socket path that is too long for the system
 * is left out. After the engine has opened, closed before it closes. */
enum err_code admin_open(struct server *s, struct admin **ret, struct err *e) BASE_NODISCARD;
void admin_close(struct admin **a);
/* The socket of the server of a store; caller frees. */
char *admin_socket_path(const char *store_dir);
/* "unix:/...", and "http://127.0.0.1:9090" behind it where there is a port. */
const char *admin_address(const struct admin *a);

/* admin_status.c: the state of the tiers as one JSON object. Any thread. */
void admin_put_tiers(struct server *s, struct buf *out);
/* One expert's place and what it takes. */
void admin_put_expert(struct server *s, const struct expert *ex, struct buf *out);

#endif

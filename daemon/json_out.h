/* Writing JSON text into a buffer. Answers are written piece by piece as tokens arrive, so there is
 * no tree to dump; these are the leaves. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_JSON_OUT_H
#define SWITCHYARD_DAEMON_JSON_OUT_H

#include "base/base.h"

/* "text" with quotes; bytes that are not UTF-8 become U+FFFD, so that the result is always JSON. */
void json_put_text(struct buf *b, const char *text, size_t len);
void json_put_str(struct buf *b, const char *text); /* NUL-terminated; NULL gives null */
/* A finite number in the shortest form that keeps `digits` significant ones; NAN and infinities
 * give null. */
void json_put_real(struct buf *b, double v, int digits);
void json_put_ms(struct buf *b, uint64_t ns); /* 1.234 */
/* The bytes inside the quotes only. */
void json_put_escaped(struct buf *b, const char *text, size_t len);

#endif

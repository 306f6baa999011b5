/* Remembers which model file became which expert, so that `serve --model X.gguf` does not read
 * gigabytes at every start to find that it has them. The memo is a file beside the store's index;
 * it is believed only if the file's path, size, time and inode are the same and the expert is still
 * the one that the import made. Losing it costs one read of the model. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_IMPORT_MEMO_H
#define SWITCHYARD_DAEMON_IMPORT_MEMO_H

#include "conf/conf.h"

/* The expert's name (caller frees), or NULL: not known, or not certain. Opens the store for
 * reading. */
char *import_memo_find(const struct conf *c, const char *model_path);
/* After an import; failures are silent, see above. */
void import_memo_note(const struct conf *c, const char *model_path, const char *name);

#endif

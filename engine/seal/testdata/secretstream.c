// A stranger's reader and writer of WAL-G's libsodium objects, on the real
// libsodium. Standard input to standard output; the key is 64 hex digits.
//   secretstream seal KEY         full chunks MESSAGE, the last one short, FINAL
//   secretstream sealfull KEY     as above, but a last full chunk is FINAL
//   secretstream sealtag KEY      as seal, but full chunks have the tag REKEY
//   secretstream sealcount KEY    as seal, with 2 chunks left before the counter is spent
//   secretstream open KEY         exit status 1 unless whole and unaltered
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define CHUNK 8192
#define OVER crypto_secretstream_xchacha20poly1305_ABYTES

int main(int argc, char **argv) {
  unsigned char key[32], plain[CHUNK + OVER], chunk[CHUNK + OVER];
  unsigned char header[crypto_secretstream_xchacha20poly1305_HEADERBYTES];
  crypto_secretstream_xchacha20poly1305_state state;
  unsigned long long n;
  size_t got;
  if (sodium_init() < 0 || argc != 3 ||
      sodium_hex2bin(key, sizeof key, argv[2], strlen(argv[2]), NULL, NULL, NULL) != 0)
    return 2;

  if (strcmp(argv[1], "open") == 0) {
    unsigned char tag;
    if (fread(header, 1, sizeof header, stdin) != sizeof header) return 1;
    if (crypto_secretstream_xchacha20poly1305_init_pull(&state, header, key) != 0) return 1;
    for (;;) {
      got = fread(chunk, 1, sizeof chunk, stdin);
      if (got < OVER) return 1;
      if (crypto_secretstream_xchacha20poly1305_pull(&state, plain, &n, &tag, chunk, got, NULL, 0) != 0) return 1;
      fwrite(plain, 1, n, stdout);
      if (tag == crypto_secretstream_xchacha20poly1305_TAG_FINAL)
        return got == sizeof chunk || getchar() != EOF;
    }
  }

  int full = strcmp(argv[1], "sealfull") == 0;
  unsigned char between = strcmp(argv[1], "sealtag") == 0
    ? crypto_secretstream_xchacha20poly1305_TAG_REKEY
    : crypto_secretstream_xchacha20poly1305_TAG_MESSAGE;
  crypto_secretstream_xchacha20poly1305_init_push(&state, header, key);
  if (strcmp(argv[1], "sealcount") == 0) memcpy(state.nonce, "\xfe\xff\xff\xff", 4);
  fwrite(header, 1, sizeof header, stdout);
  for (;;) {
    got = fread(plain, 1, CHUNK, stdin);
    int last = got < CHUNK;
    if (full && !last) {
      int c = getchar();
      if (c == EOF) last = 1; else ungetc(c, stdin);
    }
    crypto_secretstream_xchacha20poly1305_push(&state, chunk, &n, plain, got, NULL, 0,
      last ? crypto_secretstream_xchacha20poly1305_TAG_FINAL : between);
    fwrite(chunk, 1, n, stdout);
    if (last) return 0;
  }
}

from coyo_tools.pictures import decode_picture


class Decoder:
    def decode(self, data, settings):
        return decode_picture(data, settings)
